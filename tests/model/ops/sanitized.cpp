// Calls the CPU kernels on arrays of exactly the right size, many shapes and odd positions.
//
// Built by test_sanitizers.py with the address and undefined-behaviour sanitizers, which end the
// program at the first access beyond an array and the first operation without a meaning.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "bottlenecks.h"
#include "decoder.h"
#include "depthwise_training.h"
#include "encoder.h"
#include "problem.h"
#include "products.h"
#include "projections.h"

extern "C" {
void lite_detr_deform_attn_forward(const lite_detr::Problem* problem, void* output);
void lite_detr_deform_attn_backward(const lite_detr::Problem* problem,
                                    const lite_detr::Gradients* grads);
void lite_detr_bottlenecks(const lite_detr::Network* network);
void lite_detr_decoder(const lite_detr::Decoder* decoder);
void lite_detr_encoder(const lite_detr::Encoder* encoder);
void lite_detr_projections(const lite_detr::Projections* projections);
void lite_detr_depthwise_forward(const lite_detr::DepthwiseTraining* arguments);
void lite_detr_depthwise_backward(const lite_detr::DepthwiseTraining* arguments);
}

namespace {

std::mt19937 chance(0);

int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(chance);
}

// Numbers in either type; positions are sometimes far outside, infinite or NaN.
struct Numbers {
  Numbers(int64_t count, bool narrow, bool odd) : narrow_(narrow) {
    std::normal_distribution<float> normal(0.0f, 2.0f);
    const float limit = std::numeric_limits<float>::infinity();
    const float oddities[] = {NAN, limit, -limit, 3e38f, -3e38f, 1e9f, -1.0f, 0.0f};
    for (int64_t i = 0; i < count; ++i) {
      const float x = odd && between(0, 9) == 0 ? oddities[between(0, 7)] : normal(chance);
      wide.push_back(x);
      if (narrow) bits.push_back(lite_detr::narrowed(x));
    }
    if (narrow) wide = std::vector<float>();
  }
  lite_detr::Array array() const {
    return {narrow_ ? static_cast<const void*>(bits.data()) : wide.data(), narrow_};
  }
  std::vector<float> wide;
  std::vector<lite_detr::Bfloat16> bits;

 private:
  bool narrow_;
};

void one_case() {
  const int64_t levels = between(1, 5), points = between(1, 6), heads = between(1, 4);
  const int64_t sizes[] = {1, 7, 16, 20, 32, 64};
  const int64_t channels = sizes[between(0, 5)], batch = between(1, 2);
  const int64_t queries = between(0, 9) == 0 ? between(100, 300) : between(1, 20);
  std::vector<int64_t> shapes;
  int64_t tokens = 0;
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t height = between(1, 9), width = between(1, 9);
    shapes.push_back(height);
    shapes.push_back(width);
    tokens += height * width;
  }
  const bool key_aware = between(0, 1), separate = key_aware && between(0, 1);
  const bool narrow = between(0, 1), narrow_rest = between(0, 1);
  const int64_t offset_levels = between(0, 1) ? levels : 1, reference_size = between(0, 1) ? 2 : 4;
  const int64_t rows = batch * queries * heads;
  const int64_t value_size = batch * tokens * heads * channels;
  const int64_t offsets_size = rows * offset_levels * points * 2;
  const int64_t references_size = batch * queries * levels * reference_size;
  const Numbers value(value_size, narrow, false), key(separate ? value_size : 0, narrow, false);
  const Numbers query(key_aware ? rows * channels : 0, narrow_rest, false);
  const Numbers logits(key_aware ? 0 : rows * levels * points, narrow_rest, false);
  const Numbers references(references_size, narrow_rest, true), offsets(offsets_size, narrow_rest, true);

  lite_detr::Problem p{};
  p.value = value.array();
  if (separate) p.key = key.array();
  if (key_aware) p.query = query.array();
  if (!key_aware) p.logits = logits.array();
  p.reference_points = references.array();
  p.offsets = offsets.array();
  p.spatial_shapes = shapes.data();
  p.batch = batch;
  p.tokens = tokens;
  p.heads = heads;
  p.channels = channels;
  p.queries = queries;
  p.levels = levels;
  p.points = points;
  p.offset_levels = offset_levels;
  p.reference_size = reference_size;
  p.threads = between(1, 3);

  std::vector<float> wide(narrow ? 0 : rows * channels);
  std::vector<lite_detr::Bfloat16> bits(narrow ? rows * channels : 0);
  lite_detr_deform_attn_forward(&p, narrow ? static_cast<void*>(bits.data()) : wide.data());

  if (narrow || narrow_rest) return;  // the backward pass is for float32
  std::vector<float> grad_value(value_size), grad_key(separate ? value_size : 0);
  std::vector<float> grad_query(query.wide.size()), grad_logits(logits.wide.size());
  std::vector<float> grad_references(heads * references_size), grad_offsets(offsets_size);
  const bool of_references = between(0, 1);
  const lite_detr::Gradients grads{
      wide.data(),
      grad_value.data(),
      separate ? grad_key.data() : nullptr,
      key_aware ? grad_query.data() : nullptr,
      key_aware ? nullptr : grad_logits.data(),
      of_references ? grad_references.data() : nullptr,
      grad_offsets.data(),
  };
  lite_detr_deform_attn_backward(&p, &grads);
}

// Weights one after the other, as the network takes them.
struct NetworkWeights {
  int64_t add(int64_t count) {
    const int64_t place = static_cast<int64_t>(numbers.size());
    std::normal_distribution<float> normal(0.0f, 0.3f);
    for (int64_t i = 0; i < count; ++i) numbers.push_back(normal(chance));
    return place;
  }
  // Panels and bias of a product.
  void add_product(int64_t inner, int64_t columns, int64_t& panels, int64_t& bias) {
    const int64_t padded = (columns + lite_detr::kLanes - 1) / lite_detr::kLanes * lite_detr::kLanes;
    panels = add(inner * padded);
    bias = add(padded);
  }
  void add_norm(int64_t channels, lite_detr::Norm& norm) {
    norm.scale = add(channels);
    norm.shift = add(channels);
  }
  std::vector<float> numbers;
};

void one_network() {
  NetworkWeights weights;
  lite_detr::Network n{};
  n.stem = weights.add(27 * lite_detr::kStemChannels);
  n.stem_bias = weights.add(lite_detr::kStemChannels);
  n.batch = between(0, 3);
  n.height = between(1, 90);
  n.width = between(1, 110);
  n.threads = between(1, 3);
  std::vector<lite_detr::Block> blocks(between(1, 5));
  std::vector<std::vector<float>> maps;
  int64_t channels = lite_detr::kStemChannels, height = (n.height + 1) / 2, width = (n.width + 1) / 2;
  for (lite_detr::Block& b : blocks) {
    const bool expands = channels % 16 != 0 || between(0, 1);
    b.inputs = channels;
    b.width = expands ? 16 * between(1, 6) : channels;
    b.outputs = between(0, 1) ? channels : between(1, 50);
    b.kernel = between(0, 1) ? 3 : 5;
    b.stride = between(1, 2);
    b.residual = b.stride == 1 && b.outputs == b.inputs;
    b.expand = b.expand_bias = -1;
    if (expands) weights.add_product(b.inputs, b.width, b.expand, b.expand_bias);
    b.depthwise = weights.add(b.kernel * b.kernel * b.width);
    b.depthwise_bias = weights.add(b.width);
    weights.add_product(b.width, b.outputs, b.project, b.project_bias);
    height = (height + b.stride - 1) / b.stride;
    width = (width + b.stride - 1) / b.stride;
    channels = b.outputs;
    b.map = between(0, 1) ? static_cast<int64_t>(maps.size()) : -1;
    if (b.map >= 0) maps.push_back(std::vector<float>(n.batch * height * width * channels));
  }
  const bool planar = between(0, 1);
  n.channel_step = planar ? n.height * n.width : 1;
  n.row_step = planar ? n.width : 3 * n.width;
  n.column_step = planar ? 1 : 3;
  n.image_step = 3 * n.height * n.width;
  const std::vector<float> images(n.batch * n.image_step, 0.5f);
  n.images = images.data();
  n.weights = weights.numbers.data();
  n.blocks = blocks.data();
  n.block_count = static_cast<int64_t>(blocks.size());
  std::vector<float*> places;
  for (std::vector<float>& map : maps) places.push_back(map.data());
  n.maps = places.data();
  lite_detr_bottlenecks(&n);
}

std::vector<float> drawn(int64_t count, float low, float high) {
  std::vector<float> numbers(count);
  std::uniform_real_distribution<float> uniform(low, high);
  for (float& x : numbers) x = uniform(chance);
  return numbers;
}

void one_decoder() {
  NetworkWeights weights;
  lite_detr::Decoder d{};
  d.channels = 32 * between(1, 3);
  const int64_t head_counts[] = {1, 2, 4};
  d.heads = head_counts[between(0, 2)];
  d.feed_forward = between(1, 70);
  d.levels = between(1, 5), d.points = between(1, 5), d.key_aware = between(0, 1);
  d.batch = between(1, 3), d.queries = between(0, 4) == 0 ? between(50, 150) : between(1, 20);
  d.threads = between(1, 3);
  d.eps = 1e-3f, d.norm_eps = 1e-5f;
  const auto product = [&](lite_detr::Product& p, int64_t inner, int64_t columns) {
    weights.add_product(inner, columns, p.panels, p.bias);
  };
  const auto norm = [&](lite_detr::Norm& n) { weights.add_norm(d.channels, n); };
  const int64_t c = d.channels, samples = d.heads * d.levels * d.points;
  product(d.position[0], 2 * c, c);
  product(d.position[1], c, c);
  d.frequencies = weights.add(c / 2);
  norm(d.last), d.has_last = between(0, 1);
  d.class_count = between(1, 90), product(d.classes, c, d.class_count);
  std::vector<lite_detr::DecoderLayer> layers(between(1, 3));
  for (lite_detr::DecoderLayer& l : layers) {
    product(l.query_key, c, 2 * c), product(l.value, c, c), product(l.attended, c, c);
    product(l.memory, c, c);
    product(l.offsets, c, samples * 2), product(l.scores, c, d.key_aware ? c : samples);
    product(l.sampled, c, c), product(l.widen, c, d.feed_forward);
    product(l.narrow, d.feed_forward, c);
    product(l.box[0], c, c), product(l.box[1], c, c), product(l.box[2], c, 4);
    norm(l.after_attention), norm(l.after_sampling), norm(l.after_feed_forward);
  }
  std::vector<int64_t> shapes;
  for (int64_t level = 0; level < d.levels; ++level) {
    shapes.push_back(between(1, 9));
    shapes.push_back(between(1, 9));
    d.tokens += shapes[2 * level] * shapes[2 * level + 1];
  }
  const auto memory = drawn(d.batch * d.tokens * c, -1.0f, 1.0f);
  std::vector<uint8_t> padding(d.batch * d.tokens);
  for (uint8_t& each : padding) each = between(0, 1);
  const bool shared = between(0, 1);
  const auto content = drawn((shared ? 1 : d.batch) * d.queries * c, -1.0f, 1.0f);
  const auto boxes = drawn(d.batch * d.queries * 4, -4.0f, 4.0f);
  const auto query_ratios = drawn(d.batch * 4, 0.5f, 1.0f);
  const auto box_ratios = drawn(d.batch * d.levels * 4, 0.5f, 1.0f);
  std::vector<float> memory_values(layers.size() * memory.size());
  std::vector<float> logits(d.batch * d.queries * d.class_count);
  std::vector<float> predicted(d.batch * d.queries * 4);
  d.weights = weights.numbers.data(), d.layers = layers.data();
  d.layer_count = static_cast<int64_t>(layers.size());
  d.spatial_shapes = shapes.data(), d.memory = memory.data();
  d.memory_values = memory_values.data();
  d.padding = between(0, 1) ? padding.data() : nullptr;
  d.content = content.data(), d.content_step = shared ? 0 : d.queries * c;
  d.box_logits = boxes.data(), d.query_ratios = query_ratios.data(), d.box_ratios = box_ratios.data();
  d.logits = logits.data(), d.predicted = predicted.data();
  lite_detr_decoder(&d);
}

void one_encoder() {
  NetworkWeights weights;
  lite_detr::Encoder e{};
  const int64_t head_counts[] = {1, 2, 4}, c = e.channels = 32 * between(1, 3);
  e.heads = head_counts[between(0, 2)];
  e.levels = between(1, 5), e.points = between(1, 5), e.key_aware = between(0, 1);
  e.offset_levels = between(0, 1) ? e.levels : 1;
  e.batch = between(1, 3), e.threads = between(1, 3), e.norm_eps = 1e-5f;
  const auto product = [&](lite_detr::Product& p, int64_t inner, int64_t columns) {
    weights.add_product(inner, columns, p.panels, p.bias);
  };
  const auto feed_forward = [&](lite_detr::FeedForward& f) {
    f.width = between(1, 70);
    product(f.widen, c, f.width), product(f.narrow, f.width, c);
    weights.add_norm(c, f.after);
  };
  std::vector<lite_detr::EncoderLayer> layers(between(1, 3));
  for (lite_detr::EncoderLayer& l : layers) {
    product(l.value, c, c), product(l.sampled, c, c);
    product(l.offsets, c, e.heads * e.offset_levels * e.points * 2);
    product(l.scores, c, e.key_aware ? c : e.heads * e.levels * e.points);
    weights.add_norm(c, l.after_sampling);
    feed_forward(l.high), feed_forward(l.low);
    l.updates_low = between(0, 1);
  }
  std::vector<int64_t> shapes;
  for (int64_t level = 0; level < e.levels; ++level) {
    shapes.push_back(between(1, 9));
    shapes.push_back(between(1, 9));
    e.tokens += shapes[2 * level] * shapes[2 * level + 1];
    if (level == 0 && between(0, 1)) e.low_tokens = e.tokens;
  }
  std::vector<float> x = drawn(e.batch * e.tokens * c, -1.0f, 1.0f);
  const auto position = drawn(e.batch * e.tokens * c, -1.0f, 1.0f);
  const auto points = drawn(e.batch * e.tokens * e.levels * 2, -0.5f, 1.5f);
  std::vector<uint8_t> padding(e.batch * e.tokens);
  for (uint8_t& each : padding) each = between(0, 1);
  std::vector<float> values(2 * x.size());
  e.values = values.data();
  e.weights = weights.numbers.data(), e.layers = layers.data();
  e.layer_count = static_cast<int64_t>(layers.size());
  e.spatial_shapes = shapes.data(), e.x = x.data(), e.position = position.data();
  e.reference_points = points.data(), e.padding = between(0, 1) ? padding.data() : nullptr;
  lite_detr_encoder(&e);
}

void one_projection() {
  NetworkWeights weights;
  lite_detr::Projections p{};
  p.channels = 32 * between(1, 3), p.groups = 32, p.batch = between(1, 3);
  p.threads = between(1, 3), p.eps = 1e-5f;
  std::vector<lite_detr::Projection> levels(between(1, 4));
  std::vector<std::vector<float>> maps;
  std::vector<const float*> places;
  std::vector<int64_t> map_shapes, shapes;
  int64_t pixels = 0, tokens = 0;
  for (lite_detr::Projection& l : levels) {
    l.inputs = between(1, 50), l.window = between(0, 2) == 0 ? 3 : 1;
    const int64_t step = l.window == 1 ? 1 : 2, inner = l.inputs * l.window * l.window;
    weights.add_product(inner, p.channels, l.product.panels, l.product.bias);
    weights.add_norm(p.channels, l.norm);
    int64_t result = 1, kept = 1;
    for (int side = 0; side < 2; ++side) {
      map_shapes.push_back(between(1, 20));
      const int64_t length = (map_shapes.back() + step - 1) / step;
      shapes.push_back(between(1, length));
      result *= length, kept *= shapes.back();
    }
    const int64_t area = map_shapes[map_shapes.size() - 2] * map_shapes.back();
    maps.push_back(drawn(p.batch * area * l.inputs, -1.0f, 1.0f));
    pixels += result, tokens += kept;
  }
  for (const std::vector<float>& map : maps) places.push_back(map.data());
  std::vector<float> projected(p.batch * pixels * p.channels);
  std::vector<float> result(p.batch * tokens * p.channels);
  p.weights = weights.numbers.data(), p.levels = levels.data();
  p.level_count = static_cast<int64_t>(levels.size()), p.maps = places.data();
  p.map_shapes = map_shapes.data(), p.spatial_shapes = shapes.data();
  p.projected = projected.data(), p.tokens = result.data();
  lite_detr_projections(&p);
}

void one_depthwise() {
  lite_detr::DepthwiseTraining d{};
  d.batch = between(1, 3), d.height = between(1, 20), d.width = between(1, 20);
  d.channels = 16 * between(1, 6), d.kernel = between(0, 1) ? 3 : 5, d.stride = between(1, 2);
  d.bfloat16 = between(0, 1), d.input_relu6 = between(0, 1), d.threads = between(1, 3);
  const int64_t inputs = d.batch * d.height * d.width * d.channels;
  const int64_t outputs = d.batch * d.output_height() * d.output_width() * d.channels;
  const int64_t weights = d.kernel * d.kernel * d.channels;
  const Numbers input(inputs, d.bfloat16, true), gradient(outputs, d.bfloat16, true);
  const std::vector<float> weight = drawn(weights, -1, 1), bias = drawn(d.channels, -1, 1);
  Numbers output(outputs, d.bfloat16, false), grad_input(inputs, d.bfloat16, false);
  std::vector<float> grad_weight(d.batch * weights), grad_bias(d.batch * d.channels);
  std::vector<float> total(d.batch * d.channels);
  d.input = input.array().data, d.grad_output = gradient.array().data;
  d.weight = weight.data(), d.bias = bias.data();
  d.output = const_cast<void*>(output.array().data);
  lite_detr_depthwise_forward(&d);
  d.grad_weight = grad_weight.data(), d.grad_bias = grad_bias.data();
  if (between(0, 3) != 0) {
    d.grad_input = const_cast<void*>(grad_input.array().data);
    d.grad_input_sum = total.data();
  }
  lite_detr_depthwise_backward(&d);
}

}  // namespace

int main() {
  for (int i = 0; i < 400; ++i) one_case();
  for (int i = 0; i < 60; ++i) one_network();
  for (int i = 0; i < 60; ++i) one_decoder();
  for (int i = 0; i < 60; ++i) one_encoder();
  for (int i = 0; i < 60; ++i) one_projection();
  for (int i = 0; i < 60; ++i) one_depthwise();
  std::puts(
      "400 cases, 60 networks, 60 decoders, 60 encoders, 60 projections, "
      "60 depthwise convolutions");
}
