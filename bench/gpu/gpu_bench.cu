// SPDX-License-Identifier: MIT
// What the CUDA backend takes on this GPU, beside the least that the hardware allows; run.sh builds
// and starts it.
//
//     gpu_bench [--precision strict|tf32|bf16] [--size tiny|large] [--part
//     convolutions|passes|model|epochs]
//               [--batch N] [--seconds S] [--json FILE] [--export DIR]
//
// The first three may be repeated; left out, each means everything but epochs. Prints a line for
// each measurement to stderr, and one JSON object to stdout or FILE. --export writes the weights
// and the data of each size for peer.py, and measures nothing. Exits with 77 where there is no GPU.
//
// A floor is the larger of FLOP over the peak of the unit that multiplies, and bytes over the
// bandwidth of the memory: every operand read once, every result written once, as float, which is
// how they are stored. FLOP are the products of the definition, twice. What is measured again and
// again finds in the second-level cache what fits there, as it does between two layers of f.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <deq/backend/cuda/kernels.cuh>
#include <deq/backend/everybody.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/core/random.hpp>
#include <deq/io/safetensors.hpp>
#include <deq/model/mdeq_classifier.hpp>
#include <deq/nn/adam.hpp>

namespace {

using deq::Conv2dGeometry;
using deq::Index;
using deq::MdeqConfig;
using deq::Shape;
using deq::cuda::Graph;
using Plain = deq::Cuda<float>;  ///< what does not multiply is the same in every precision
using Storage = deq::CompactSteps;

constexpr int forward_iterations = 18;
constexpr double float_bytes = sizeof(float);

// --- Options
// ---------------------------------------------------------------------------------------

struct Options {
  std::vector<std::string> precisions, sizes, parts;
  Index batch = 128;
  double seconds = 0.2;  ///< of a measurement, at least
  std::string json, export_to;

  static bool has(const std::vector<std::string>& list, const std::string& item) {
    return std::find(list.begin(), list.end(), item) != list.end();
  }
  /// Whether an item was asked for, by name or with all others.
  static bool wants(const std::vector<std::string>& list, const std::string& item) {
    return list.empty() || has(list, item);
  }
};

[[noreturn]] void usage() {
  std::fputs(
      "usage: gpu_bench [--precision strict|tf32|bf16]... [--size tiny|large]...\n"
      "                 [--part convolutions|passes|model|epochs]... [--batch N] [--seconds S]\n"
      "                 [--json FILE] [--export DIR]\n",
      stderr);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options o;
  const auto one_of = [](std::vector<std::string>& list, const std::string& value,
                         const std::vector<std::string>& allowed) {
    if (!Options::has(allowed, value)) usage();
    list.push_back(value);
  };
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) usage();
    const std::string value = argv[i + 1];
    if (name == "--precision")
      one_of(o.precisions, value, {"strict", "tf32", "bf16"});
    else if (name == "--size")
      one_of(o.sizes, value, {"tiny", "large"});
    else if (name == "--part")
      one_of(o.parts, value, {"convolutions", "passes", "model", "epochs"});
    else if (name == "--batch")
      o.batch = std::atol(value.c_str());
    else if (name == "--seconds")
      o.seconds = std::atof(value.c_str());
    else if (name == "--json")
      o.json = value;
    else if (name == "--export")
      o.export_to = value;
    else
      usage();
  }
  if (o.batch < 1) usage();
  return o;
}

// --- The machine
// -----------------------------------------------------------------------------------

/// Published peaks, dense, without sparsity: TFLOP/s of bf16 and tf32 on tensor cores and of float
/// on the ordinary units, TB/s of the memory. A device whose name has none of these is unknown.
struct Published {
  const char* name;
  double bf16, tf32, strict, bandwidth;
};
constexpr std::array published{
    Published{" H200", 989, 494, 67, 4.8},
    Published{"H100 80GB HBM3", 989, 494, 67, 3.35},
    Published{"A100-SXM4-80GB", 312, 156, 19.5, 2.04},
};

struct Machine {
  std::string name;
  int major = 0, minor = 0, processors = 0, driver = 0, runtime = 0;
  double memory_bytes = 0, l2_bytes = 0;
  const Published* peaks = nullptr;
  double copy_bandwidth = 0;  ///< measured, read and written, bytes a second

  double bandwidth() const { return peaks ? 1e12 * peaks->bandwidth : copy_bandwidth; }
  std::optional<double> peak(const std::string& precision) const {
    if (!peaks) return std::nullopt;
    return 1e12 * (precision == "bf16"   ? peaks->bf16
                   : precision == "tf32" ? peaks->tf32
                                         : peaks->strict);
  }
  /// The least time; nothing where the peak is unknown.
  std::optional<double> floor(double flop, double bytes, const std::string& precision) const {
    const double memory = bytes / bandwidth();
    if (flop == 0) return memory;
    const auto p = peak(precision);
    return p ? std::optional(std::max(flop / *p, memory)) : std::nullopt;
  }
};

// --- Time
// ------------------------------------------------------------------------------------------

class Event {
 public:
  Event() { deq::cuda::check(cudaEventCreate(&event_), "create an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record() {
    deq::cuda::check(cudaEventRecord(event_, deq::cuda::stream()), "record an event");
  }
  /// Waits for this one.
  double since(const Event& start) const {
    deq::cuda::check(cudaEventSynchronize(event_), "wait for an event");
    float milliseconds = 0;
    deq::cuda::check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "time events");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

double once(const std::function<void()>& work, int calls) {
  Event start, end;
  start.record();
  for (int i = 0; i < calls; ++i) work();
  end.record();
  return end.since(start);
}

/// How many calls a repetition needs to last 5 ms.
int calls_for(double seconds) {
  return static_cast<int>(std::clamp(5e-3 / std::max(seconds, 1e-9), 1.0, 100.0));
}

/// The median of one call after a warm-up: of repetitions that go on until `budget` seconds are
/// spent, and are at least five unless that takes four times the budget.
double seconds_of(double budget, const std::function<void()>& work) {
  once(work, 2);
  const int calls = calls_for(once(work, 1));
  std::vector<double> times;
  for (double spent = 0;
       times.size() < 3 || spent < budget || (times.size() < 5 && spent < 4 * budget);) {
    const double t = once(work, calls);
    spent += t;
    times.push_back(t / calls);
  }
  std::sort(times.begin(), times.end());
  return (times[(times.size() - 1) / 2] + times[times.size() / 2]) / 2;
}

struct Timing {
  double seconds = 0;
  double recorded = 0;               ///< 1: as a graph, so that the host's share is nothing
  std::optional<double> launches{};  ///< kernels and copies that one call hands to the device
};

/// Of short work, many calls recorded as one graph; at once where that fails.
Timing recorded_seconds(double budget, const std::function<void()>& work) {
  once(work, 2);
  const int calls = calls_for(once(work, 1));
  Timing timing;
  try {
    Graph graph([&] {
      for (int i = 0; i < calls; ++i) work();
#ifdef __CUDACC__  // the emulated device has no list of nodes
      cudaStreamCaptureStatus status{};
      cudaGraph_t captured = nullptr;
      std::size_t nodes = 0;
      deq::cuda::check(cudaStreamGetCaptureInfo(deq::cuda::stream(), &status, nullptr, &captured,
                                                nullptr, nullptr, nullptr),
                       "see what is recorded");
      deq::cuda::check(cudaGraphGetNodes(captured, nullptr, &nodes), "count what is recorded");
      timing.launches = static_cast<double>(nodes) / calls;
#endif
    });
    timing.seconds = seconds_of(budget, [&] { graph.launch(); }) / calls;
    timing.recorded = 1;
  } catch (const deq::DeviceError& error) {
    std::fprintf(stderr, "not recorded: %s\n", error.what());
    cudaGetLastError();
    timing.seconds = seconds_of(budget, work);
  }
  return timing;
}

// --- Results
// ---------------------------------------------------------------------------------------

using Fields = std::vector<std::pair<std::string, std::optional<double>>>;

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + '"';
}
std::string number(std::optional<double> x) {
  if (!x || !std::isfinite(*x)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", *x);
  return text;
}

class Report {
 public:
  explicit Report(const Machine& machine) : machine_(machine) {}

  /// One measurement: what it took, the least it could take, and whatever else is known.
  void add(const std::string& name, const Timing& t, double flop, double bytes,
           const std::string& precision, Fields more = {}) {
    std::optional<double> floor;
    if (flop > 0 || bytes > 0) floor = machine_.floor(flop, bytes, precision);
    add_with_floor(name, t, flop, bytes, floor, std::move(more));
  }
  void add_with_floor(const std::string& name, const Timing& t, double flop, double bytes,
                      std::optional<double> floor, Fields more = {}) {
    Fields fields{{"seconds", t.seconds}, {"recorded", t.recorded}};
    if (t.launches) fields.emplace_back("launches", t.launches);
    const bool work = flop > 0 || bytes > 0;
    if (flop > 0) fields.emplace_back("flop", flop);
    if (bytes > 0) fields.emplace_back("bytes", bytes);
    if (work) {
      fields.emplace_back("floor", floor);
      fields.emplace_back("share", floor ? std::optional(*floor / t.seconds) : std::nullopt);
    }
    if (flop > 0) fields.emplace_back("flop_per_second", flop / t.seconds);
    if (bytes > 0) fields.emplace_back("bytes_per_second", bytes / t.seconds);
    fields.insert(fields.end(), more.begin(), more.end());
    std::fprintf(stderr, "%-52s %11.3f us", name.c_str(), 1e6 * t.seconds);
    if (work) {
      if (floor)
        std::fprintf(stderr, "  floor %11.3f us %4.0f %%", 1e6 * *floor, 100 * *floor / t.seconds);
      else
        std::fprintf(stderr, "  floor           - us    - %%");
    }
    if (flop > 0) std::fprintf(stderr, "  %7.1f TFLOP/s", 1e-12 * flop / t.seconds);
    if (bytes > 0) std::fprintf(stderr, "  %7.1f GB/s", 1e-9 * bytes / t.seconds);
    for (const auto& [key, value] : more)
      if (value) std::fprintf(stderr, "  %s %.6g", key.c_str(), *value);
    std::fputc('\n', stderr);
    put(name, fields);
  }
  void failed(const std::string& name, const std::string& why) {
    std::fprintf(stderr, "%-52s failed: %s\n", name.c_str(), why.c_str());
    results_.emplace_back(name, "{\"error\": " + quoted(why) + "}");
    failures_ = true;
  }
  bool failures() const { return failures_; }

  std::string json(Index batch) const {
    const Machine& m = machine_;
    Fields numbers{
        {"multiprocessors", m.processors},   {"driver", m.driver},     {"runtime", m.runtime},
        {"memory_bytes", m.memory_bytes},    {"l2_bytes", m.l2_bytes}, {"bandwidth", m.bandwidth()},
        {"copy_bandwidth", m.copy_bandwidth}};
    for (const char* precision : {"strict", "tf32", "bf16"})
      numbers.emplace_back(std::string("peak_") + precision, m.peak(precision));
    std::string out = "{\"device\": {\"name\": " + quoted(m.name) + ", \"capability\": \"" +
                      std::to_string(m.major) + "." + std::to_string(m.minor) +
                      "\", \"peaks\": " + (m.peaks ? "\"published\"" : "\"unknown\"") + ", " +
                      fields(numbers) + "},\n \"batch\": " + std::to_string(batch) +
                      ",\n \"results\": {";
    for (std::size_t i = 0; i < results_.size(); ++i)
      out += (i ? ",\n  " : "\n  ") + quoted(results_[i].first) + ": " + results_[i].second;
    return out + "\n }}\n";
  }

 private:
  static std::string fields(const Fields& list) {
    std::string out;
    for (const auto& [key, value] : list)
      out += (out.empty() ? "" : ", ") + quoted(key) + ": " + number(value);
    return out;
  }
  void put(const std::string& name, const Fields& list) {
    results_.emplace_back(name, "{" + fields(list) + "}");
  }

  const Machine& machine_;
  std::vector<std::pair<std::string, std::string>> results_;
  bool failures_ = false;
};

// --- Data
// ------------------------------------------------------------------------------------------

std::vector<float> normal_numbers(Index n, std::uint32_t sample, double deviation = 1) {
  deq::Random random(7, deq::Purpose::synthetic_data, 0, sample);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& v : values) v = static_cast<float>(deviation * random.normal());
  return values;
}
template <class B>
deq::Tensor<B> random_normal(const Shape& shape, std::uint32_t sample, double deviation = 1) {
  return deq::Tensor<B>(shape, normal_numbers(shape.size(), sample, deviation));
}
/// Random numbers for a tensor of any size: some that are repeated. Tensor cores draw more power,
/// and run slower, on these than on zeros.
template <class B>
deq::Tensor<B> repeated_normal(const Shape& shape, std::uint32_t sample) {
  const std::vector<float> some = normal_numbers(1 << 16, sample);
  std::vector<float> values(static_cast<std::size_t>(shape.size()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = some[i % some.size()];
  return deq::Tensor<B>(shape, values);
}

// --- Convolutions
// ----------------------------------------------------------------------------------

struct Convolution {
  std::string name;
  Conv2dGeometry geometry;
  Index groups = 8;
  double count = 0;  ///< in one application of f

  double flop() const {
    const Conv2dGeometry& g = geometry;
    return 2 * static_cast<double>(g.samples * g.out_pixels() * g.out_channels) *
           static_cast<double>(g.patch());
  }
  /// Both images and the weight, once each; the same for every gradient.
  double bytes() const {
    const Conv2dGeometry& g = geometry;
    return float_bytes * static_cast<double>(g.samples * (g.in_pixels() * g.in_channels +
                                                          g.out_pixels() * g.out_channels) +
                                             g.out_channels * g.patch());
  }
};

/// Every shape of convolution in f, and how often it occurs. peer.py has the same list.
std::vector<Convolution> convolutions(const MdeqConfig& c, Index samples) {
  std::vector<Convolution> list;
  const auto add = [&](Index in, Index out, Index side, Index kernel, Index stride, Index groups) {
    const std::string name = std::to_string(in) + "_" + std::to_string(out) + "_at_" +
                             std::to_string(side) + "_k" + std::to_string(kernel) + "_s" +
                             std::to_string(stride);
    auto found = std::find_if(list.begin(), list.end(),
                              [&](const Convolution& v) { return v.name == name; });
    if (found == list.end())
      found = list.insert(
          list.end(),
          {name, {samples, in, side, side, out, kernel, kernel, stride, kernel / 2}, groups, 0});
    ++found->count;
  };
  for (Index i = 0; i < c.branches(); ++i) {
    const Index channels = c.channels_of(i), wide = c.expansion * channels;
    add(channels, wide, c.resolution(i), 3, 1, c.groups);
    add(wide, channels, c.resolution(i), 3, 1, c.groups);
  }
  for (Index i = 0; i < c.branches(); ++i)
    for (Index j = 0; j < i; ++j)
      for (Index q = j; q < i; ++q)
        add(c.channels_of(j), q + 1 == i ? c.channels_of(i) : c.channels_of(j), c.resolution(q), 3,
            2, c.groups);
  for (Index i = 0; i < c.branches(); ++i)
    for (Index j = i + 1; j < c.branches(); ++j)
      add(c.channels_of(j), c.channels_of(i), c.resolution(j), 1, 1, c.groups);
  for (Index i = 0; i < c.branches(); ++i)
    add(c.channels_of(i), c.channels_of(i), c.resolution(i), 1, 1, c.groups / 2);
  return list;
}

/// The sum of all convolutions of f: FLOP, and the floor.
struct Total {
  double flop = 0;
  std::optional<double> floor = 0;
};
Total total_of(const std::vector<Convolution>& list, const Machine& machine,
               const std::string& precision) {
  Total total;
  for (const Convolution& v : list) {
    total.flop += v.count * v.flop();
    const auto one = machine.floor(v.flop(), v.bytes(), precision);
    total.floor = one && total.floor ? std::optional(*total.floor + v.count * *one) : std::nullopt;
  }
  return total;
}

template <class B>
void convolution(const Convolution& v, const std::string& prefix, const std::string& precision,
                 const Options& o, Report& report) {
  using Numbers = deq::Tensor<B>;
  const Conv2dGeometry& g = v.geometry;
  const Numbers x = repeated_normal<B>({g.samples, g.height, g.width, g.in_channels}, 1);
  const Shape out{g.samples, g.out_height(), g.out_width(), g.out_channels};
  const Numbers dy = repeated_normal<B>(out, 2), u(out), dx(x.shape());
  const Numbers w =
      repeated_normal<B>({g.out_channels, g.in_channels, g.kernel_height, g.kernel_width}, 3);
  const Numbers dw(w.shape()), mean({g.samples, v.groups}), inverse({g.samples, v.groups});
  const Numbers packed({nhwc_packed_size(B{}, g, false)}),
      transposed({nhwc_packed_size(B{}, g, true)});
  nhwc_pack(B{}, g, false, w.data(), packed.data());
  nhwc_pack(B{}, g, true, w.data(), transposed.data());
  const deq::NormGeometry n{g.samples, g.out_channels, g.out_pixels(), g.out_channels / v.groups};

  const auto measure = [&](const char* what, const std::function<void()>& work) {
    const std::string name = prefix + "conv/" + v.name + "/" + what;
    try {
      report.add(name, recorded_seconds(o.seconds, work), v.flop(), v.bytes(), precision,
                 {{"count", v.count}});
    } catch (const deq::Error& error) {
      report.failed(name, error.what());
    }
  };
  measure("forward", [&] {
    nhwc_conv2d_statistics(B{}, g, n, x.data(), packed.data(), deq::NhwcConvParts<float>{},
                           u.data(),
                           deq::NormStatistics<float>{1e-5f, mean.data(), nullptr, inverse.data()});
  });
  measure("input_gradient",
          [&] { nhwc_conv2d_vjp_input(B{}, g, transposed.data(), dy.data(), dx.data(), false); });
  measure("weight_gradient",
          [&] { nhwc_conv2d_vjp_weight(B{}, g, x.data(), dy.data(), dw.data(), false); });
}

// --- Passes
// ----------------------------------------------------------------------------------------

/// What moves numbers and hardly computes: the floor is the memory's.
void passes(const Options& o, Report& report) {
  using Numbers = deq::Tensor<Plain>;
  const MdeqConfig c = MdeqConfig::large();
  const auto measure = [&](const std::string& name, double numbers,
                           const std::function<void()>& work) {
    try {
      report.add("passes/" + name, recorded_seconds(o.seconds, work), 0, float_bytes * numbers,
                 "strict");
    } catch (const deq::Error& error) {
      report.failed("passes/" + name, error.what());
    }
  };
  const Index batch = o.batch, side = c.resolution(0), wide = c.expansion * c.channels_of(0);
  {
    // The widest image of f, between the two convolutions of the first residual block.
    const Shape shape{batch, side, side, wide};
    const Numbers u = repeated_normal<Plain>(shape, 1), y = repeated_normal<Plain>(shape, 2),
                  h = repeated_normal<Plain>(shape, 3), du(shape), dr(shape);
    const Numbers mean({batch, c.groups});
    const Numbers inverse({batch, c.groups}, 1.f), weight({wide}, 1.f), bias({wide}, 0.f);
    const Numbers sums({batch, wide}), sums_du({batch, wide});
    const deq::NormGeometry n{batch, wide, side * side, wide / c.groups};
    const deq::NhwcNorm<float> norm{n,           mean.data(), inverse.data(), weight.data(),
                                    bias.data(), true};
    const auto size = static_cast<double>(u.size());
    measure("statistics", size, [&] {
      nhwc_statistics(Plain{}, n, u.data(),
                      deq::NormStatistics<float>{1e-5f, mean.data(), nullptr, inverse.data()});
    });
    measure("normalize_relu", 2 * size, [&] {
      nhwc_normalize(Plain{}, norm, u.data(), static_cast<const float*>(nullptr), du.data());
    });
    measure("normalize_residual_relu", 3 * size,
            [&] { nhwc_normalize(Plain{}, norm, u.data(), h.data(), du.data()); });
    measure("normalize_vjp_sums", 3 * size, [&] {
      nhwc_normalize_vjp_sums(Plain{}, norm, u.data(), y.data(), h.data(), sums.data(),
                              sums_du.data());
    });
    measure("normalize_vjp", 5 * size, [&] {
      nhwc_normalize_vjp(Plain{}, norm, u.data(), y.data(), h.data(), sums.data(), sums_du.data(),
                         static_cast<const float*>(nullptr), deq::NhwcSink<float>{dr.data()},
                         deq::NhwcSink<float>{du.data()}, static_cast<float*>(nullptr));
    });
    const auto plus = std::plus<float>{};
    measure("elementwise_add", 3 * size,
            [&] { elementwise(Plain{}, u.size(), plus, du.data(), u.data(), y.data()); });
  }
  {
    const Index narrow = c.channels_of(0);
    const Numbers large = repeated_normal<Plain>({batch, side, side, narrow}, 1),
                  small = repeated_normal<Plain>({batch, side / 2, side / 2, narrow}, 2),
                  y(large.shape());
    const deq::NhwcUpsampling g{batch, side / 2, side / 2, narrow, 2, false};
    measure("upsample_add", 2.25 * static_cast<double>(large.size()),
            [&] { nhwc_upsample_add(Plain{}, g, large.data(), small.data(), y.data()); });
    measure("transpose", 2 * static_cast<double>(large.size()), [&] {
      nhwc_transpose(Plain{}, batch, narrow, side * side, large.data(), narrow * side * side,
                     y.data(), narrow * side * side, false);
    });
  }
  {
    // Between two evaluations of f in Broyden's last iteration, all steps but the last stored.
    const Index dim = c.state_size(), stored = forward_iterations, capacity = stored + 1;
    const Numbers f = repeated_normal<Plain>({batch, dim}, 1),
                  z = repeated_normal<Plain>(f.shape(), 2), g(f.shape());
    const Numbers basis = repeated_normal<Plain>({batch, capacity, dim}, 3);
    const Numbers out({batch, capacity}), coefficient({batch, capacity}, 0.f), scale({batch}, 1.f),
        squared({batch}), f_squared({batch});
    deq::Array<Plain, Index> rank, slot;
    const std::vector<Index> ranks(static_cast<std::size_t>(batch), stored);
    for (auto* x : {&rank, &slot}) {
      x->resize(batch);
      Plain::upload_bytes(x->data(), ranks.data(), ranks.size() * sizeof(Index));
    }
    deq::Everybody<Plain> everybody;
    const deq::Samples a = everybody(batch);
    const deq::BasisView<float> h{basis.data(), dim, capacity};
    const auto size = static_cast<double>(f.size());
    measure("broyden_residual_project", (stored + 3) * size, [&] {
      Plain::residual(a, f.batch(), z.batch(), g.batch(), squared.data(), f_squared.data(), h,
                      rank.data(), out.data());
    });
    measure("broyden_extend", (stored + 4) * size, [&] {
      Plain::extend(a, h, rank.data(), coefficient.data(), scale.data(), g.batch(), slot.data(),
                    z.batch(), squared.data());
    });
    measure("copy", 2 * size, [&] { Plain::copy(a, f.batch(), g.batch()); });
    measure("residual", 3 * size, [&] {
      Plain::residual(a, f.batch(), z.batch(), g.batch(), squared.data(), f_squared.data());
    });
  }
  {
    deq::Parameters<Plain> parameters;
    parameters.emplace_back("all", Shape{count_values(deq::Mdeq<Plain>(c).parameters())});
    deq::Adam<Plain> adam{std::span<const deq::Parameter<Plain>>(parameters)};
    adam.begin_step(0);
    measure("adam", 12 * static_cast<double>(parameters[0].value.size()),
            [&] { adam.apply(parameters); });
  }
}

// --- The model
// -------------------------------------------------------------------------------------

/// Broyden's method with a budget of iterations that nothing cuts short, so that all do the same
/// work.
deq::Broyden<Storage> broyden() {
  return {.stopping = {.max_iterations = forward_iterations,
                       .relative_tolerance = 0,
                       .divergence_factor = INFINITY,
                       .stall_window = 0},
          .memory = forward_iterations};
}

/// A freshly initialised network, and a batch of data, those of bench/mdeq_work.hpp.
template <class B>
struct Work {
  using Numbers = deq::Tensor<B>;
  using Classifier = deq::MdeqClassifier<B, deq::Broyden<Storage>, deq::Gdeq>;

  deq::Mdeq<B> model;
  Numbers images;
  std::vector<Index> host_labels;
  deq::Labels<B> labels;
  std::vector<Numbers> masks;
  Numbers z;  ///< where f and its VJP are measured alone

  Work(const MdeqConfig& config, Index batch)
      : model(config),
        images(random_normal<B>({batch, 3, 32, 32}, 0)),
        z(random_normal<B>({batch, config.state_size()}, 1)) {
    // Biases with which the f of TINY contracts; see MdeqWork.
    for (auto& p : model.parameters())
      if (config.branches() == 2 && p.name.ends_with("gnorm.bias"))
        p.value = random_normal<B>(p.value.shape(), 2, 5);
    for (Index n = 0; n < batch; ++n) host_labels.push_back(n % config.classes);
    labels.assign(host_labels);
    for (Index i = 0; i < config.branches(); ++i) masks.push_back(mask(i, 0));
  }
  Index batch() const { return z.extent(0); }
  Numbers mask(Index branch, std::uint32_t step) const {
    const MdeqConfig& c = model.config();
    return deq::dropout_mask<B>({batch(), c.channels_of(branch), 1, 1}, c.dropout,
                                {.step = step, .layer = static_cast<std::uint32_t>(branch)});
  }
  Classifier classifier() { return Classifier(model, broyden(), deq::Gdeq{}); }

  void save(const std::filesystem::path& path) const {
    deq::SafetensorsWriter writer;
    model.save(writer);
    const auto add = [&](const std::string& name, const Numbers& t) {
      writer.add<float>(name, t.shape(), t.to_host());
    };
    add("images", images);
    writer.add<std::int64_t>("labels", {batch()},
                             std::vector<std::int64_t>(host_labels.begin(), host_labels.end()));
    for (std::size_t i = 0; i < masks.size(); ++i) add("mask." + std::to_string(i), masks[i]);
    add("z", z);
    writer.write(path);
  }
};

double norm(const std::vector<float>& values) {
  double sum = 0;
  for (const float v : values) sum += double{v} * double{v};
  return std::sqrt(sum);
}

/// Bytes of the device that are in use, by whomever.
double bytes_in_use() {
  std::size_t free = 0, total = 0;
  deq::cuda::check(cudaMemGetInfo(&free, &total), "ask for the free memory");
  return static_cast<double>(total - free);
}
/// Memory from here on: pools never give back, so what they hold in the end is the peak.
class Memory {
 public:
  Memory() {
    deq::cuda::synchronize();
    deq::cuda::DevicePool::instance().trim();
    before_ = bytes_in_use();
    pool_before_ = static_cast<double>(deq::cuda::DevicePool::instance().bytes());
  }
  /// Held for numbers.
  double peak(const Graph* graph = nullptr) const {
    return static_cast<double>(deq::cuda::DevicePool::instance().bytes()) - pool_before_ +
           static_cast<double>(graph ? graph->bytes() : 0);
  }
  /// Of the device, with what a graph itself takes.
  double device() const { return bytes_in_use() - before_; }

 private:
  double before_ = 0, pool_before_ = 0;
};

template <class B>
class Model {
 public:
  Model(const MdeqConfig& config, std::string prefix, std::string precision, const Options& o,
        const Machine& machine, Report& report)
      : config_(config),
        prefix_(std::move(prefix)),
        precision_(std::move(precision)),
        o_(o),
        machine_(machine),
        report_(report) {}

  void all() {
    attempt("step_eager", [&] { step(false); });
    attempt("step", [&] { step(true); });
    for (const Index batch : std::set{Index{1}, o_.batch}) {
      const std::string name = "inference_" + std::to_string(batch);
      attempt(name, [&] { inference(name, batch); });
    }
    attempt("f", [&] { layer(); });
  }

  /// Two epochs of CIFAR-10's size, or what 90 s allow of them, with new images, labels and masks
  /// for every step, drawn and uploaded by the host as training does, and what 220 would take.
  void epochs() {
    attempt("epochs", [&] {
      constexpr double samples = 50000, wanted = 220, most_seconds = 90;
      Work<B> work(config_, o_.batch);
      auto classifier = work.classifier();
      deq::Adam<B> adam{std::span<const deq::Parameter<B>>(work.model.parameters())};
      const auto train = [&] { train_and_update(work, classifier, adam); };
      adam.begin_step(0);
      train();
      Graph graph(train);
      const std::vector<float> images = normal_numbers(work.images.size(), 5);
      const auto steps_of_epoch = std::ceil(samples / static_cast<double>(o_.batch));
      int steps = 0;
      const auto start = std::chrono::steady_clock::now();
      double seconds = 0;
      while (steps < 2 * steps_of_epoch && seconds < most_seconds) {
        B::upload_bytes(work.images.data(), images.data(), images.size() * sizeof(float));
        work.labels.assign(work.host_labels);
        for (std::size_t i = 0; i < work.masks.size(); ++i) {
          const auto drawn = work.mask(static_cast<Index>(i), static_cast<std::uint32_t>(steps));
          B::copy_bytes(work.masks[i].data(), drawn.data(),
                        static_cast<std::size_t>(drawn.size()) * sizeof(float));
        }
        adam.begin_step(1e-3);
        graph.launch();
        graph.finish();
        ++steps;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
      const double epochs = steps / steps_of_epoch;
      report_.add(prefix_ + "epochs", {.seconds = seconds, .recorded = 1}, 0, 0, precision_,
                  {{"epochs", epochs},
                   {"steps", steps},
                   {"images_per_second", steps * static_cast<double>(o_.batch) / seconds},
                   {"minutes_of_220_epochs", seconds / epochs * wanted / 60},
                   {"last_loss", classifier.last_report().loss}});
    });
  }

 private:
  using Numbers = deq::Tensor<B>;

  void attempt(const std::string& name, const std::function<void()>& measure) {
    try {
      measure();
    } catch (const std::exception& error) {
      report_.failed(prefix_ + name, error.what());
      cudaGetLastError();
    }
    deq::cuda::DevicePool::instance().trim();
  }

  static void train_and_update(Work<B>& work, typename Work<B>::Classifier& classifier,
                               deq::Adam<B>& adam) {
    classifier.train(work.images, work.labels, work.masks);
    adam.apply(work.model.parameters());
  }

  /// Forward, the gradients of all parameters with dropout, and Adam; at once, or recorded.
  void step(bool recorded) {
    const Memory memory;
    Work<B> work(config_, o_.batch);
    auto classifier = work.classifier();
    deq::Adam<B> adam{std::span<const deq::Parameter<B>>(work.model.parameters())};
    const auto train = [&] { train_and_update(work, classifier, adam); };
    // A rate of 0 leaves the weights where they are: every repetition does the same work.
    adam.begin_step(0);
    train();
    std::optional<Graph> graph;
    if (recorded) graph.emplace(train);
    const std::function<void()> once_more = [&] {
      adam.begin_step(0);
      if (!recorded) return train();
      graph->launch();
      graph->finish();
    };
    const double seconds = seconds_of(o_.seconds, once_more);
    const deq::PassReport& pass = classifier.last_report();
    // f(z*) and its recording beside the solve, then the gradients of state and parameters: as many
    // products each as f. Of the stem and the head nothing is counted.
    const Total f = total();
    const double passes = evaluations(pass.solve) + 4;
    report_.add_with_floor(
        prefix_ + (recorded ? "step" : "step_eager"),
        {.seconds = seconds, .recorded = recorded ? 1.0 : 0.0}, passes * f.flop, 0,
        f.floor ? std::optional(passes * *f.floor) : std::nullopt,
        {{"images_per_second", static_cast<double>(o_.batch) / seconds},
         {"evaluations", evaluations(pass.solve)},
         {"peak_bytes", memory.peak(graph ? &*graph : nullptr)},
         {"device_bytes", memory.device()},
         {"loss", pass.loss},
         {"z", norm(classifier.solution().z.to_host())},
         {"minutes_of_220_epochs",
          seconds * 220 * std::ceil(50000 / static_cast<double>(o_.batch)) / 60}});
  }

  /// Evaluation by the same classifier; its inverse, which nobody asks for, is updated once more
  /// than needed.
  void inference(const std::string& name, Index batch) {
    const Memory memory;
    Work<B> work(config_, batch);
    auto classifier = work.classifier();
    Numbers logits;
    const auto infer = [&] { logits = classifier.logits(work.images); };
    const auto add = [&](const std::string& kind, double recorded, double seconds,
                         const Graph* graph) {
      const double f = evaluations(classifier.solution().report);
      const auto list = convolutions(config_, batch);
      const Total t = total_of(list, machine_, precision_);
      report_.add_with_floor(prefix_ + name + kind, {.seconds = seconds, .recorded = recorded},
                             f * t.flop, 0, t.floor ? std::optional(f * *t.floor) : std::nullopt,
                             {{"images_per_second", static_cast<double>(batch) / seconds},
                              {"evaluations", f},
                              {"peak_bytes", memory.peak(graph)},
                              {"logits", norm(logits.to_host())}});
    };
    add("_eager", 0, seconds_of(o_.seconds, infer), nullptr);
    Graph graph(infer);
    add("", 1,
        seconds_of(o_.seconds,
                   [&] {
                     graph.launch();
                     graph.finish();
                   }),
        &graph);
  }

  /// f, its recording on a tape, a product with J^T, a solve and what of it is not f.
  void layer() {
    Work<B> work(config_, o_.batch);
    const Index dim = config_.state_size();
    const auto values = work.model.values();
    const std::span<const Numbers> all(values);
    const std::vector<Numbers> x{work.model.stem(work.images, all, deq::BatchNormMode::evaluate)};
    const auto effective = work.model.layer_parameters(all);
    std::vector<Numbers> theta;
    for (const Numbers& t : effective) theta.push_back(t.frozen());
    const Total one = total();
    double f_seconds = 0;
    {
      deq::MdeqFunction f = work.model.function(false);
      deq::TapedMap<B, deq::MdeqFunction, std::dynamic_extent, std::dynamic_extent> map;
      map.bind(f, {dim}, x, theta);
      deq::Everybody<B> everybody;
      const deq::Samples a = everybody(o_.batch);
      const Numbers out(work.z.shape());
      const auto add = [&](const std::string& name, const Timing& t, Fields more = {}) {
        more.emplace_back("images_per_second", static_cast<double>(o_.batch) / t.seconds);
        report_.add_with_floor(prefix_ + name, t, one.flop, 0, one.floor, std::move(more));
      };
      const auto evaluate = [&] { map.evaluate(a, work.z.batch(), out.batch()); };
      add("f_eager", {.seconds = seconds_of(o_.seconds, evaluate)});
      const Timing t = recorded_seconds(o_.seconds, evaluate);
      f_seconds = t.seconds;
      add("f", t, {{"out", norm(out.to_host())}});
      const auto record = [&] { map.linearize(work.z.batch()); };
      add("record", recorded_seconds(o_.seconds, record));
      map.linearize(work.z.batch());
      add("vjp", recorded_seconds(o_.seconds, [&] { map.vjp(a, work.z.batch(), out.batch()); }));
    }
    auto layer =
        deq::equilibrium<deq::Broyden<Storage>, deq::Gdeq>(work.model.function(false), broyden());
    const Numbers start(work.z.shape(), 0.f);
    const auto inputs = deq::inputs(std::span<const Numbers>(x));
    const auto params = deq::params(std::span<const Numbers>(theta));
    auto solution = layer.solve(start, inputs, params);
    const auto solve = [&] { layer.solve(start, inputs, params, solution); };
    const auto add = [&](const std::string& name, double recorded, double seconds) {
      const double n = evaluations(solution.report);
      report_.add_with_floor(prefix_ + name, {.seconds = seconds, .recorded = recorded},
                             n * one.flop, 0,
                             one.floor ? std::optional(n * *one.floor) : std::nullopt,
                             {{"evaluations", n},
                              {"images_per_second", static_cast<double>(o_.batch) / seconds},
                              {"broyden_share", (seconds - n * f_seconds) / seconds},
                              {"relative_residual", solution.report.mean_relative()},
                              {"z", norm(solution.z.to_host())}});
    };
    add("solve_eager", 0, seconds_of(o_.seconds, solve));
    Graph graph(solve);
    add("solve", 1, seconds_of(o_.seconds, [&] {
          graph.launch();
          graph.finish();
        }));
  }

  static double evaluations(const deq::SolveReport& report) {
    return report.samples.empty() ? 0 : static_cast<double>(report.samples[0].evaluations);
  }
  Total total() const { return total_of(convolutions(config_, o_.batch), machine_, precision_); }

  MdeqConfig config_;
  std::string prefix_, precision_;
  const Options& o_;
  const Machine& machine_;
  Report& report_;
};

// --- The program
// -----------------------------------------------------------------------------------

MdeqConfig config_of(const std::string& size) {
  return size == "tiny" ? MdeqConfig::tiny() : MdeqConfig::large();
}

template <class Precision>
constexpr const char* name_of() {
  if (std::is_same_v<Precision, deq::cuda::Bf16>) return "bf16";
  return std::is_same_v<Precision, deq::cuda::Tf32> ? "tf32" : "strict";
}

template <class Precision>
void measure_precision(const Options& o, const Machine& machine, Report& report) {
  using B = deq::Cuda<float, Precision>;
  const std::string precision = name_of<Precision>();
  if (!Options::wants(o.precisions, precision)) return;
  for (const std::string size : {"large", "tiny"}) {
    if (!Options::wants(o.sizes, size)) continue;
    const std::string prefix = precision + "/" + size + "/";
    const MdeqConfig config = config_of(size);
    Model<B> model(config, prefix, precision, o, machine, report);
    if (Options::wants(o.parts, "model")) model.all();
    if (Options::wants(o.parts, "convolutions"))
      for (const Convolution& v : convolutions(config, o.batch)) {
        convolution<B>(v, prefix, precision, o, report);
        deq::cuda::DevicePool::instance().trim();
      }
    if (Options::has(o.parts, "epochs")) model.epochs();
  }
}

/// run.sh compiles a program for each precision, all at the same time.
#ifdef DEQ_GPU_BENCH_ONLY
using FirstPrecision = deq::cuda::DEQ_GPU_BENCH_ONLY;
void measure_precisions(const Options& o, const Machine& machine, Report& report) {
  measure_precision<FirstPrecision>(o, machine, report);
}
#else
using FirstPrecision = deq::cuda::Strict;
void measure_precisions(const Options& o, const Machine& machine, Report& report) {
  measure_precision<deq::cuda::Strict>(o, machine, report);
  measure_precision<deq::cuda::Tf32>(o, machine, report);
  measure_precision<deq::cuda::Bf16>(o, machine, report);
}
#endif

Machine examine() {
  Machine m;
  cudaDeviceProp properties{};
  deq::cuda::check(cudaGetDeviceProperties(&properties, 0), "ask what the device is");
  m.name = properties.name;
  m.major = properties.major;
  m.minor = properties.minor;
  m.processors = properties.multiProcessorCount;
  m.memory_bytes = static_cast<double>(properties.totalGlobalMem);
#ifdef __CUDACC__  // what the emulated device does not say
  m.l2_bytes = properties.l2CacheSize;
  cudaDriverGetVersion(&m.driver);
  cudaRuntimeGetVersion(&m.runtime);
#endif
  for (const Published& p : published)
    if (m.name.find(p.name) != std::string::npos) m.peaks = &p;
  const Index n = Index{1} << 26;  // more than any second-level cache holds
  const deq::Tensor<Plain> from({n}, 1.f), to({n});
  const double seconds = seconds_of(0.1, [&] {
    Plain::copy_bytes(to.data(), from.data(), static_cast<std::size_t>(n) * sizeof(float));
  });
  m.copy_bandwidth = 2 * float_bytes * static_cast<double>(n) / seconds;
  return m;
}

int run(const Options& o) {
  if (!deq::cuda::available()) {
    std::fputs("gpu_bench: no CUDA device here\n", stderr);
    return 77;
  }
  if (!o.export_to.empty()) {
    std::filesystem::create_directories(o.export_to);
    for (const std::string size : {"tiny", "large"})
      if (Options::wants(o.sizes, size))
        Work<deq::Cuda<float, FirstPrecision>>(config_of(size), o.batch)
            .save(std::filesystem::path(o.export_to) / (size + ".safetensors"));
    return 0;
  }
  const Machine machine = examine();
  std::fprintf(stderr, "%s, compute capability %d.%d, copies %.0f GB/s, peaks %s\n",
               machine.name.c_str(), machine.major, machine.minor, 1e-9 * machine.copy_bandwidth,
               machine.peaks ? "published" : "unknown");
  Report report(machine);
  if (Options::wants(o.parts, "passes")) {
    passes(o, report);
    deq::cuda::DevicePool::instance().trim();
  }
  measure_precisions(o, machine, report);
  const std::string json = report.json(o.batch);
  if (o.json.empty()) {
    std::fputs(json.c_str(), stdout);
  } else {
    std::FILE* const file = std::fopen(o.json.c_str(), "w");
    if (!file || std::fputs(json.c_str(), file) < 0 || std::fclose(file) != 0) {
      std::fprintf(stderr, "gpu_bench: cannot write %s\n", o.json.c_str());
      return 1;
    }
  }
  return report.failures() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
