// Layers of experts for the tests of the hosts of GPUs: on the CPU, on a device, and all their arrays there.
#pragma once
#include "device_support.h"

struct Layer {
  Host gate, up, down;
  OnDevice gate_there, up_there, down_there;
  std::vector<float> x;
  std::vector<int32_t> ids;
  std::vector<float> weights;
  int64_t tokens, k;

  static constexpr int64_t kExperts = 4, kHidden = 256, kInter = 288;

  Layer(const char* gate_format, const char* up_format, const char* down_format, int64_t n_tokens, int64_t slots)
      : gate(host_weight(gate_format, kExperts, kInter, kHidden)),
        up(host_weight(up_format, kExperts, kInter, kHidden)),
        down(host_weight(down_format, kExperts, kHidden, kInter)),
        gate_there(upload(gate.tensor, best(gate), kFirst)),
        up_there(upload(up.tensor, best(up), kFirst)),
        down_there(upload(down.tensor, best(down), kFirst)),
        x(floats(n_tokens * kHidden)),
        weights(floats(n_tokens * slots)),
        tokens(n_tokens),
        k(slots) {
    Random random;
    for (int64_t i = 0; i < tokens * k; ++i) ids.push_back(static_cast<int32_t>(random.bits() % kExperts));
  }

  static lutkern_layout best(const Host& h) {
    return lutkern_device_has_tiles(kFirst, h.tensor.ggml_type) ? LUTKERN_TILES : LUTKERN_BLOCKS;
  }

  lutkern_moe_args args(bool there, float* out) const {
    lutkern_moe_args a{};
    a.gate = there ? &gate_there.tensor : &gate.tensor;
    a.up = there ? &up_there.tensor : &up.tensor;
    a.down = there ? &down_there.tensor : &down.tensor;
    a.x = matrix(x.data(), tokens, kHidden, LUTKERN_CPU);
    a.expert_ids = ids.data();
    a.expert_weights = weights.data();
    a.k = k;
    a.activation = LUTKERN_ACTIVATION_SILU;
    a.out = out;
    return a;
  }
  size_t numbers() const { return static_cast<size_t>(tokens * kHidden); }
};

// All arrays of a layer on the device
struct LayerThere {
  Memory x, ids, weights, out;
  lutkern_moe_args args;

  explicit LayerThere(const Layer& layer)
      : x(kFirst, layer.x.size() * 4),
        ids(kFirst, layer.ids.size() * 4),
        weights(kFirst, layer.weights.size() * 4),
        out(kFirst, layer.numbers() * 4),
        args(layer.args(true, out.floats())) {
    fill(layer);
    args.x = matrix(x.data(), layer.tokens, Layer::kHidden, kFirst);
    args.expert_ids = static_cast<const int32_t*>(ids.data());
    args.expert_weights = weights.floats();
  }
  void fill(const Layer& layer) const {
    ok(lutkern_device_copy(x.data(), kFirst, layer.x.data(), LUTKERN_CPU, x.bytes(), nullptr));
    ok(lutkern_device_copy(ids.data(), kFirst, layer.ids.data(), LUTKERN_CPU, ids.bytes(), nullptr));
    ok(lutkern_device_copy(weights.data(), kFirst, layer.weights.data(), LUTKERN_CPU, weights.bytes(), nullptr));
  }
  std::vector<float> result(void* stream) const {
    std::vector<float> got(out.bytes() / 4);
    ok(lutkern_device_copy(got.data(), LUTKERN_CPU, out.data(), kFirst, out.bytes(), stream));
    return got;
  }
};
