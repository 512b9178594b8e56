// The fake driver's streams, events and graphs.
#include "entry.h"

using namespace fake;

// ---- streams ----

FAKE_API Result cuStreamCreate(Stream* stream, unsigned flags) {
  const Entry e("cuStreamCreate", kContextCurrent);
  if (e.refused()) return e.result();
  if (flags > 1) return e.no(kInvalidValue, "unknown flags");
  *stream = new_stream(current(), flags != kStreamNonBlocking);
  return kSuccess;
}

FAKE_API Result cuStreamDestroy_v2(Stream stream) {
  const Entry e("cuStreamDestroy_v2", kContextCurrent, true);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s || s == current()->legacy || s == current()->per_thread) return e.no(kInvalidHandle, "not a stream");
  if (s->capture) return e.no(kCaptureUnsupported, "the stream is captured");
  complete(s);
  handles().streams.erase(s);
  delete s;
  return e.result();
}

FAKE_API Result cuStreamSynchronize(Stream stream) {
  const Entry e("cuStreamSynchronize", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (s->capture) {
    s->capture->invalid = true;
    return e.no(kCaptureUnsupported, "the stream is captured");
  }
  complete(s);
  return sticky();
}

FAKE_API Result cuStreamWaitEvent(Stream stream, Event event, unsigned flags) {
  const Entry e("cuStreamWaitEvent", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (handles().events.count(event) == 0 || flags != 0) return e.no(kInvalidHandle, "not an event, or flags");
  if (event->capture && handles().captures.count(event->capture)) {
    if (s->capture && s->capture != event->capture) return e.no(kCaptureUnsupported, "of two captures");
    s->capture = event->capture;
    s->capture->unjoined.erase(event->recorded_on);
    if (s != s->capture->origin) s->capture->unjoined.insert(s);
    return kSuccess;
  }
  if (s->capture) return e.no(kCaptureUnsupported, "the event is not of the capture");
  if (event->ticket) enqueue(s, [] {}, {event->ticket});
  return kSuccess;
}

// ---- capture and graphs ----

FAKE_API Result cuStreamBeginCapture_v2(Stream stream, int mode) {
  const Entry e("cuStreamBeginCapture_v2", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s || s == current()->legacy) return e.no(kCaptureUnsupported, "the default stream cannot be captured");
  if (s->capture) return e.no(kInvalidValue, "the stream is captured already");
  if (mode < 0 || mode > 2) return e.no(kInvalidValue, "unknown mode");
  s->capture = std::make_shared<Capture>();
  s->capture->origin = s;
  s->capture->thread = std::this_thread::get_id();
  s->capture->mode = mode;
  handles().captures.insert(s->capture);
  return kSuccess;
}

FAKE_API Result cuStreamEndCapture(Stream stream, Graph* graph) {
  const Entry e("cuStreamEndCapture", kContextCurrent, true);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s || !s->capture || s->capture->origin != s) return e.no(kCaptureUnmatched, "no capture began in the stream");
  const CapturePtr capture = s->capture;
  for (StreamHandle* other : handles().streams) {
    if (other->capture == capture) other->capture = nullptr;
  }
  handles().captures.erase(capture);
  *graph = nullptr;
  if (e.result() != kSuccess) return e.result();
  if (capture->invalid) return kCaptureInvalidated;
  if (!capture->unjoined.empty()) return e.no(kCaptureUnjoined, "a stream of the capture was not waited for");
  *graph = new GraphHandle{capture};
  handles().graphs.insert(*graph);
  return kSuccess;
}

FAKE_API Result cuStreamIsCapturing(Stream stream, int* status) {
  const Entry e("cuStreamIsCapturing", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  *status = !s->capture ? 0 : (s->capture->invalid ? 2 : 1);
  return kSuccess;
}

FAKE_API Result cuGraphInstantiateWithFlags(GraphExec* exec, Graph graph, unsigned long long flags) {
  const Entry e("cuGraphInstantiateWithFlags", kContextCurrent);
  if (e.refused()) return e.result();
  if (handles().graphs.count(graph) == 0) return e.no(kInvalidHandle, "not a graph");
  if (flags != 0 && flags != kAutoFreeOnLaunch) return e.no(kInvalidValue, "flags that the fake does not know");
  *exec = new GraphExecHandle{graph->capture, current()};
  handles().execs.insert(*exec);
  return kSuccess;
}

FAKE_API Result cuGraphLaunch(GraphExec exec, Stream stream) {
  const Entry e("cuGraphLaunch", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (handles().execs.count(exec) == 0) return e.no(kInvalidHandle, "not a graph that can run");
  if (s->capture) return e.no(kCaptureUnsupported, "the stream is captured");
  const CapturePtr capture = exec->capture;
  enqueue(s, [capture] {
    for (Array* a : capture->arrays) {
      if (a->live) kill(a);
    }
    for (const auto& node : capture->nodes) {
      if (sticky() == kSuccess) node();
    }
  });
  return kSuccess;
}

FAKE_API Result cuGraphDestroy(Graph graph) {
  const Entry e("cuGraphDestroy", kContextCurrent, true);
  if (e.refused()) return e.result();
  if (handles().graphs.erase(graph) == 0) return e.no(kInvalidHandle, "not a graph");
  delete graph;
  return e.result();
}

FAKE_API Result cuGraphExecDestroy(GraphExec exec) {
  const Entry e("cuGraphExecDestroy", kContextCurrent, true);
  if (e.refused()) return e.result();
  if (handles().execs.erase(exec) == 0) return e.no(kInvalidHandle, "not a graph that can run");
  complete_device(current()->device);
  for (Array* a : exec->capture->arrays) {
    if (!a->live) forget(a);
  }
  delete exec;
  return e.result();
}

// ---- events ----

FAKE_API Result cuEventCreate(Event* event, unsigned flags) {
  const Entry e("cuEventCreate", kContextCurrent);
  if (e.refused()) return e.result();
  if (flags != 0) return e.no(kInvalidValue, "flags that the fake does not know");
  *event = new EventHandle{current(), nullptr, nullptr, nullptr};
  handles().events.insert(*event);
  return kSuccess;
}

FAKE_API Result cuEventDestroy_v2(Event event) {
  const Entry e("cuEventDestroy_v2", kContextCurrent, true);
  if (e.refused()) return e.result();
  if (handles().events.erase(event) == 0) return e.no(kInvalidHandle, "not an event");
  delete event;
  return e.result();
}

FAKE_API Result cuEventRecord(Event event, Stream stream) {
  const Entry e("cuEventRecord", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (handles().events.count(event) == 0) return e.no(kInvalidHandle, "not an event");
  if (event->context != current()) return e.no(kInvalidHandle, "the event is of another context");
  event->recorded_on = s;
  event->capture = s->capture;
  if (s->capture) return kSuccess;
  enqueue(s, [] {});
  event->ticket = s->last;
  return kSuccess;
}

FAKE_API Result cuEventSynchronize(Event event) {
  const Entry e("cuEventSynchronize", kContextCurrent);
  if (e.refused()) return e.result();
  if (handles().events.count(event) == 0) return e.no(kInvalidHandle, "not an event");
  if (event->capture) return e.no(kCaptureUnsupported, "the event was recorded in a capture");
  complete(event->ticket);
  return sticky();
}

FAKE_API Result cuEventElapsedTime(float* milliseconds, Event begin, Event end) {
  const Entry e("cuEventElapsedTime", kContextCurrent);
  if (e.refused()) return e.result();
  if (handles().events.count(begin) == 0 || handles().events.count(end) == 0)
    return e.no(kInvalidHandle, "not an event");
  if (!begin->ticket || !end->ticket) return e.no(kInvalidHandle, "an event was never recorded");
  if (!begin->ticket->done || !end->ticket->done) return kNotReady;
  *milliseconds = static_cast<float>(end->ticket->time - begin->ticket->time);
  return kSuccess;
}
