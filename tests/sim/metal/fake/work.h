// Running what was committed.
#pragma once
#include "metal.h"

namespace fake {

// The kernel of a pipeline on its bindings, now; an empty text: all went well.
std::string run_kernel(const Pipeline& pipeline, const std::array<Binding, kBindings>& bindings, const Size& groups,
                       unsigned long threads);
// The bytes of one binding to another, now
std::string run_copy(const Binding& from, const Binding& to, size_t bytes);
// Until the condition holds; ends the process where nothing that is committed can make it true.
void run_until(const std::function<bool()>& condition, const char* what);
// Some steps of some queues
void wander();
// Command buffers that were committed and are not done
int pending();

void add_queue(Queue* queue);
void remove_queue(Queue* queue);

}  // namespace fake
