// SPDX-License-Identifier: MIT
// Convolutions of float by oneDNN 2 with its OpenMP runtime, behind the interface of the engine's
// own algorithms: to compare with, and for a processor on which it is faster. DEQ_WITH_ONEDNN
// chooses it for all convolutions, as an option of CMake or, with oneDNN and OpenMP linked, a
// macro.
//
// A thread has a sample to itself, as it has with the small images of the other algorithms, and
// asks oneDNN for a primitive of one thread: bits depend neither on the team nor on other samples.
// A single sample keeps one thread busy. Every call allocates a little, for oneDNN's arguments.
#pragma once

#include <deq/backend/geometry.hpp>

#ifdef DEQ_WITH_ONEDNN
#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <omp.h>
#include <oneapi/dnnl/dnnl.hpp>
#include <type_traits>
#include <unordered_map>

#include <deq/backend/cpu/conv/fusion.hpp>
#include <deq/backend/cpu/conv/packing.hpp>
#endif

namespace deq::detail {

#ifndef DEQ_WITH_ONEDNN
/// Whether oneDNN convolves numbers of this type here.
template <class S>
inline constexpr bool has_onednn = false;
/// For templates to name; without oneDNN none of them calls it.
Index onednn_packed_size(const Conv2dGeometry& g, bool transposed);
#else
template <class S>
inline constexpr bool has_onednn = std::is_same_v<S, float>;

/// What a product of oneDNN's computes from the other two of a convolution.
enum class OneDnnProduct { image, weight, output };

/// The primitive for one product of a convolution. Images are channels-last, the weight lies as the
/// primitive likes it best. Threads may execute one at the same time.
class OneDnnPrimitive {
 public:
  /// Made once for every geometry and product, and kept.
  static const OneDnnPrimitive& of(const Conv2dGeometry& g, OneDnnProduct product) {
    static std::mutex mutex;
    static std::map<std::array<Index, 10>, OneDnnPrimitive> made;
    const std::lock_guard lock(mutex);
    return made
        .try_emplace({g.samples, g.in_channels, g.height, g.width, g.out_channels, g.kernel_height,
                      g.kernel_width, g.stride, g.padding, static_cast<Index>(product)},
                     g, product)
        .first->second;
  }

  OneDnnPrimitive(const Conv2dGeometry& g, OneDnnProduct product)
      : product_(product),
        image_({g.samples, g.in_channels, g.height, g.width}, Type::f32, Tag::nhwc),
        plain_({g.out_channels, g.in_channels, g.kernel_height, g.kernel_width}, Type::f32,
               Tag::oihw),
        output_({g.samples, g.out_channels, g.out_height(), g.out_width()}, Type::f32, Tag::nhwc) {
    using dnnl::convolution_backward_data, dnnl::convolution_backward_weights,
        dnnl::convolution_forward;
    constexpr auto direct = dnnl::algorithm::convolution_direct;
    const OneThread scope;
    const Desc weight(plain_.dims(), Type::f32, Tag::any);
    const dnnl::memory::dims stride{g.stride, g.stride}, padding{g.padding, g.padding};
    dnnl::primitive_attr attributes;
    // A scratchpad of the library's is no place for two threads.
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const auto take = [&](const auto& description, const Desc& packed) {
      packed_ = packed;
      scratchpad_ = description.scratchpad_desc();
      primitive_ = dnnl::primitive(description);
    };

    const convolution_forward::primitive_desc forward(
        {dnnl::prop_kind::forward_training, direct, image_, weight, output_, stride, padding,
         padding},
        attributes, engine());
    if (product == OneDnnProduct::output) {
      take(forward, forward.weights_desc());
    } else if (product == OneDnnProduct::image) {
      const convolution_backward_data::primitive_desc backward(
          {direct, image_, weight, output_, stride, padding, padding}, attributes, engine(),
          forward);
      take(backward, backward.weights_desc());
    } else {
      const convolution_backward_weights::primitive_desc backward(
          {direct, image_, weight, output_, stride, padding, padding}, attributes, engine(),
          forward);
      take(backward, backward.diff_weights_desc());
    }
  }

  /// Numbers of a packed weight.
  Index packed_size() const { return numbers_of(packed_); }
  /// From (O, I, kh, kw), and back.
  void pack(const float* w, float* packed) const { reorder(plain_, w, packed_, packed); }
  void unpack(const float* packed, float* w) const { reorder(packed_, packed, plain_, w); }

  /// Writes to one of the three, and reads the other two.
  void execute(const float* image, const float* packed, const float* output) const {
    const OneThread scope;
    const Array<Cpu<float>> scratchpad(numbers_of(scratchpad_));
    run(primitive_, {{product_ == OneDnnProduct::image ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC,
                      memory(image_, image)},
                     {product_ == OneDnnProduct::weight ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS,
                      memory(packed_, packed)},
                     {product_ == OneDnnProduct::output ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST,
                      memory(output_, output)},
                     {DNNL_ARG_SCRATCHPAD, memory(scratchpad_, scratchpad.data())}});
  }

 private:
  using Desc = dnnl::memory::desc;
  using Tag = dnnl::memory::format_tag;
  using Type = dnnl::memory::data_type;

  /// Without it, OpenMP gives every thread of the team a team of its own.
  class OneThread {
   public:
    OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
    ~OneThread() { omp_set_num_threads(before_); }
    OneThread(const OneThread&) = delete;
    OneThread& operator=(const OneThread&) = delete;

   private:
    int before_;
  };

  static const dnnl::engine& engine() {
    static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
    return cpu;
  }
  static void run(const dnnl::primitive& primitive,
                  const std::unordered_map<int, dnnl::memory>& arguments) {
    thread_local dnnl::stream stream(engine());
    primitive.execute(stream, arguments);
    stream.wait();
  }
  static dnnl::memory memory(const Desc& desc, const float* data) {
    return {desc, engine(), const_cast<float*>(data)};
  }
  static Index numbers_of(const Desc& desc) {
    return static_cast<Index>((desc.get_size() + sizeof(float) - 1) / sizeof(float));
  }
  static void reorder(const Desc& from_desc, const float* from, const Desc& to_desc, float* to) {
    const OneThread scope;
    const dnnl::memory source = memory(from_desc, from), target = memory(to_desc, to);
    run(dnnl::reorder(source, target), {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, target}});
  }

  OneDnnProduct product_;
  Desc image_, plain_, output_, packed_, scratchpad_;
  dnnl::primitive primitive_;
};

inline const OneDnnPrimitive& onednn_primitive(Conv2dGeometry g, bool transposed) {
  g.samples = 1;
  return OneDnnPrimitive::of(g, transposed ? OneDnnProduct::image : OneDnnProduct::output);
}

/// Numbers of a weight packed for a convolution, or for the transpose of one.
inline Index onednn_packed_size(const Conv2dGeometry& g, bool transposed) {
  return onednn_primitive(g, transposed).packed_size();
}
inline void pack_onednn(const Conv2dGeometry& g, bool transposed, const float* w, float* packed) {
  onednn_primitive(g, transposed).pack(w, packed);
}

/// y = x * w, or the transpose of the convolution applied to x; then the epilogue, in a pass of its
/// own.
inline void convolve_onednn(const Conv2dGeometry& g, bool transposed, const float* x,
                            const float* packed, const Epilogue<float>& epilogue, float* y) {
  const OneDnnPrimitive& primitive = onednn_primitive(g, transposed);
  const Index image = g.in_pixels() * g.in_channels, output = g.out_pixels() * g.out_channels;
  const Index pixels = transposed ? g.in_pixels() : g.out_pixels();
  const Index channels = transposed ? g.in_channels : g.out_channels;
  const Panels<float> panels(channels);
  parallel_for(g.samples, [&](Index n) {
    float* const to = y + n * (transposed ? image : output);
    // What is added may lie where the sum goes to.
    const Array<Cpu<float>> scratch(epilogue.addend ? pixels * channels : 0);
    const float* const product = epilogue.addend ? scratch.data() : to;
    transposed ? primitive.execute(product, packed, x + n * output)
               : primitive.execute(x + n * image, packed, product);
    with_epilogue(epilogue, channels, [&](auto fused, auto moments) {
      if (!epilogue.bias && !epilogue.mask && !epilogue.addend && !epilogue.moments) return;
      for (Index p = 0; p < panels.count(); ++p) {
        const Index first = panels.first_channel(p);
        PanelWriter<float, fused, moments> writer(epilogue, pixels, channels, first,
                                                  panels.width_of(p), y, 0);
        writer.select(n);
        for_each_run<float>(0, pixels, [&](Index begin, Index end) {
          for (int v = 0; v < panels.width_of(p); ++v)
            writer.write(v, [&](auto&& put) DEQ_INLINE {
              const Index channel = first + v * simd_width<float>;
              for (Index i = begin; i < end; ++i)
                put(i, load(product + i * channels + channel, channels - channel));
            });
        });
      }
    });
  });
}

/// dw (+)= sum over the samples: parts of them, which depend on their number alone, and whose sums
/// are added in order.
inline void weight_gradient_onednn(const Conv2dGeometry& g, const float* x, const float* dy,
                                   float* dw, bool accumulate) {
  const Index size = g.out_channels * g.patch();
  if (!accumulate) std::fill_n(dw, size, 0.f);
  // To unpack the sum of a part and to add it costs as much as some hundred pixels of it.
  const Index parts = std::min({g.samples, Index{8}, 1 + g.samples * g.out_pixels() / 512});
  const Array<Cpu<float>> sums(parts * size);
  parallel_for(parts, [&](Index part) {
    const Index first = part * g.samples / parts, last = (part + 1) * g.samples / parts;
    Conv2dGeometry some = g;
    some.samples = last - first;
    const OneDnnPrimitive& primitive = OneDnnPrimitive::of(some, OneDnnProduct::weight);
    const Array<Cpu<float>> packed(primitive.packed_size());
    primitive.execute(x + first * g.in_pixels() * g.in_channels, packed.data(),
                      dy + first * g.out_pixels() * g.out_channels);
    primitive.unpack(packed.data(), sums.data() + part * size);
  });
  for (Index part = 0; part < parts; ++part)
    for (Index i = 0; i < size; ++i) dw[i] += sums.data()[part * size + i];
}
#endif

}  // namespace deq::detail
