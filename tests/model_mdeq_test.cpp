// SPDX-License-Identifier: MIT
// MDEQ beyond the numbers of the original (check_reference): other configurations than TINY and
// LARGE, files, independence of samples and threads, the gradient of a whole training pass.
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <string>
#include <type_traits>
#include <unistd.h>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <deq/deq.hpp>

#include "support/tensors.hpp"

namespace {

using namespace deq;
using deq_test::check_error;
using deq_test::random_tensor;
using deq_test::same_bits;
using deq_test::TensorOf;
using deq_test::Threads;

MdeqConfig one_branch() {
  return {.channels = {8},
          .head_channels = {2},
          .final_channels = 8,
          .classes = 3,
          .image_channels = 2,
          .image_size = 4,
          .expansion = 3,
          .groups = 4,
          .dropout = 0.25};
}
MdeqConfig three_branches() {
  return {.channels = {4, 12, 8},
          .head_channels = {1, 3, 2},
          .final_channels = 6,
          .classes = 5,
          .image_channels = 1,
          .image_size = 12,
          .expansion = 2,
          .groups = 4,
          .dropout = 0.5};
}

/// A network and a batch. The zeros, ones and nearly zeros of a fresh network hide mistakes, so
/// everything is stirred; large biases behind its norms leave z little say in f, which makes f
/// contract.
template <class S>
struct Setup {
  using B = Cpu<S>;
  using T = TensorOf<S>;
  using Lists = std::vector<std::vector<S>>;

  explicit Setup(const MdeqConfig& c, Index count = 4)
      : model(c, 3),
        images(random_tensor<S>({count, c.image_channels, c.image_size, c.image_size}, 1)) {
    std::uint64_t seed = 100;
    for (Parameter<B>& p : model.parameters()) {
      const bool large = p.name.starts_with("fullstage") && p.name.ends_with("bias");
      const double range = large ? 5 : 0.3;
      p.value = p.value + random_tensor<S>(p.value.shape(), ++seed, -range, range);
    }
    for (BatchNormState<B>& norm : model.batch_norms()) {
      norm.running_mean = random_tensor<S>(norm.running_mean.shape(), ++seed);
      norm.running_var = random_tensor<S>(norm.running_var.shape(), ++seed, 0.5, 2);
    }
    for (Index n = 0; n < count; ++n) labels.push_back(n % c.classes);
    for (Index i = 0; i < c.branches(); ++i)
      masks.push_back(dropout_mask<B>({count, c.channels_of(i), 1, 1}, 0.3,
                                      {.layer = static_cast<std::uint32_t>(i)}));
  }

  template <class Policy, class Solver = Broyden<>>
  auto classifier(Policy policy, Solver solver = {}) {
    return MdeqClassifier<B, Solver, Policy>(model, solver, policy);
  }
  Lists gradients() const {
    Lists list;
    for (const Parameter<B>& p : model.parameters()) list.push_back(p.grad.to_host());
    return list;
  }
  /// Parameters, running statistics and the number of batches in them.
  Lists content() {
    Lists list;
    for (const Parameter<B>& p : model.parameters()) list.push_back(p.value.to_host());
    for (const BatchNormState<B>& norm : model.batch_norms()) {
      for (const T& t : {norm.running_mean, norm.running_var}) list.push_back(t.to_host());
      list.push_back({static_cast<S>(norm.batches)});
    }
    return list;
  }

  Mdeq<B> model;
  T images;
  std::vector<Index> labels;
  std::vector<T> masks;
};

/// ||a - b|| / ||b|| of all numbers together.
template <class S>
double distance(const std::vector<std::vector<S>>& a, const std::vector<std::vector<S>>& b) {
  double error = 0, scale = 0;
  for (std::size_t i = 0; i < b.size(); ++i)
    for (std::size_t k = 0; k < b[i].size(); ++k) {
      const auto expected = static_cast<double>(b[i][k]);
      error += std::pow(static_cast<double>(a.at(i).at(k)) - expected, 2);
      scale += expected * expected;
    }
  return std::sqrt(error / scale);
}

/// f of MDEQ-SPEC.md once more, with every parameter fetched by its name instead of by its place.
template <class S, class T = TensorOf<S>>
T specified_f(const Mdeq<Cpu<S>>& model, const T& state, const std::vector<T>& x,
              const std::vector<T>& masks) {
  const MdeqConfig& c = model.config();
  const auto p = [&](const std::string& name) {
    for (const auto& parameter : model.parameters())
      if (parameter.name == name) return parameter.value;
    throw InvalidArgument("no parameter " + name);
  };
  const auto wn = [&](const std::string& name) {
    return weight_norm(p(name + ".weight_v"), p(name + ".weight_g"));
  };
  const auto gn = [&](const T& a, const std::string& name) {
    return group_norm(a, c.groups, p(name + ".weight"), p(name + ".bias"));
  };
  std::vector<T> b, out;
  Index first = 0, side = c.image_size;
  for (std::size_t i = 0; i < c.channels.size(); ++i, side /= 2) {
    const Index size = c.channels[i] * side * side;
    const T z = nhwc::to_nchw(
        reshape(slice(state, 1, first, size), {state.extent(0), side, side, c.channels[i]}));
    first += size;
    const std::string block = message("fullstage.branches.", i, ".blocks.0.");
    T a = relu(gn(conv2d(z, wn(block + "conv1"), {.padding = 1}), block + "gn1"));
    a = conv2d(a, wn(block + "conv2"), {.padding = 1});
    if (!masks.empty()) a = a * masks[i];
    if (i < x.size()) a = a + nhwc::to_nchw(x[i]);
    b.push_back(gn(relu(gn(a, block + "gn2") + z), block + "gn3"));
  }
  for (std::size_t i = 0; i < b.size(); ++i) {
    T s(b[i].shape(), S(0));
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::string net = message("fullstage.fuse_layers.", i, ".", j, ".net.");
      T t = b[j];
      if (j > i) {
        t = gn(conv2d(t, p(net + "conv.weight")), net + "gnorm");
        t = upsample_nearest(t, Index{1} << (j - i));
      }
      for (std::size_t q = 0; q + j < i; ++q) {
        const T w = p(message(net, q, ".conv.weight"));
        t = conv2d(q > 0 ? relu(t) : t, w, {.stride = 2, .padding = 1});
        t = gn(t, message(net, q, ".gnorm"));
      }
      s = s + t;
    }
    s = conv2d(relu(s), wn(message("fullstage.post_fuse_layers.", i, ".conv")));
    out.push_back(flatten(nhwc::from_nchw(group_norm(s, c.groups / 2))));
  }
  return concat(1, std::span<const T>(out));
}

}  // namespace

TEST_CASE("case H: the parameters and the state of TINY and LARGE") {
  const auto check = [](const MdeqConfig& c, const std::array<Index, 4>& parameters, Index state,
                        Index statistics, std::size_t norms) {
    const MdeqLayout layout(c);
    const auto count = [&](std::size_t first, std::size_t last) {
      Index n = 0;
      for (std::size_t i = first; i < last; ++i) n += layout.parameters[i].shape.size();
      return n;
    };
    const std::size_t all = layout.parameters.size();
    CHECK(std::array{count(0, layout.stem_end), count(layout.stem_end, layout.layer_end),
                     count(layout.layer_end, all), count(0, all)} == parameters);
    CHECK(c.state_size() == state);
    for (const auto& norm : layout.batch_norms) statistics -= 2 * norm.channels;
    CHECK(statistics == 0);
    CHECK(layout.batch_norms.size() == norms);
  };
  check(MdeqConfig::tiny(), {5928, 111696, 41266, 158890}, 30720, 1104, 12);
  check(MdeqConfig::large(), {11296, 8715232, 2370910, 11097438}, 61440, 9320, 23);

  const Index C = 8, H = 2, F = 8, K = 3, E = 3, image = 2;
  const Index stem = 9 * image * C + 9 * C * C + 2 * 2 * C;
  const Index block = (9 * C * E * C + E * C + 2 * E * C) + (9 * E * C * C + C + 4 * C);
  const Index head = (C * H + 9 * H * H + H * 4 * H) + (C * 4 * H + 2 * 4 * H) +
                     (4 * H * F + F + 2 * F) + (K * F + K);
  CHECK(count_values(Mdeq<Cpu<double>>(one_branch()).parameters()) ==
        stem + block + (C * C + C) + head);
  CHECK(one_branch().state_size() == C * 4 * 4);
}

TEST_CASE("TINY has the names and shapes of the original's state_dict, in its order") {
  const auto file = SafetensorsFile::open(DEQ_TEST_DATA "/tiny.weights.safetensors");
  const MdeqLayout layout(MdeqConfig::tiny());
  std::vector<std::string> ours, theirs;
  std::map<std::string, Shape> shapes;
  for (const auto& [name, shape, initial] : layout.parameters) {
    ours.push_back(name);
    shapes[name] = shape;
  }
  for (const auto& [name, channels] : layout.batch_norms) {
    shapes[name + ".running_mean"] = shapes[name + ".running_var"] = {channels};
    shapes[name + ".num_batches_tracked"] = {};
  }
  for (const std::string& name : file.names()) {
    CAPTURE(name);
    REQUIRE(shapes.contains(name));
    CHECK(shapes[name] == file.shape(name));
    shapes.erase(name);
    if (name.find("running") == name.npos && name.find("tracked") == name.npos)
      theirs.push_back(name);
  }
  CHECK(shapes.empty());
  CHECK(ours == theirs);
}

TEST_CASE_TEMPLATE("any configuration: f is that of MDEQ-SPEC.md, and everything has a gradient", S,
                   float, double) {
  using T = TensorOf<S>;
  for (const MdeqConfig& c : {one_branch(), three_branches()}) {
    CAPTURE(c.branches());
    Setup<S> s(c);
    const auto all = s.model.values();
    const auto theta = s.model.layer_parameters(std::span<const T>(all));
    const T z = random_tensor<S>({4, c.state_size()}, 2);
    for (Index injections = 0; injections <= c.branches(); ++injections)
      for (const bool dropout : {false, true}) {
        std::vector<T> x;
        for (Index i = 0; i < injections; ++i)
          x.push_back(random_tensor<S>({4, c.resolution(i), c.resolution(i), c.channels_of(i)}, 3));
        const T expected = specified_f<S>(s.model, z, x, dropout ? s.masks : std::vector<T>());
        if (dropout) x.insert(x.end(), s.masks.begin(), s.masks.end());
        const T y = s.model.function(dropout)(z, std::span<const T>(x), std::span<const T>(theta));
        CHECK(y.shape() == z.shape());
        CHECK(distance<S>({y.to_host()}, {expected.to_host()}) < deq_test::rounding<S>);
      }

    auto classifier = s.classifier(Gdeq{});
    CHECK(std::isfinite(classifier.train(s.images, s.labels, s.masks).loss));
    CHECK(classifier.last_logits().shape() == Shape{4, c.classes});
    for (const auto& p : s.model.parameters()) {
      CAPTURE(p.name);
      CHECK(p.grad.shape() == p.value.shape());
      S sum = 0;
      for (const S g : p.grad.to_host()) sum += std::abs(g);
      CHECK(std::isfinite(sum));
      // What a bias adds before a batch norm, the batch mean takes away.
      CHECK((sum > S(1e-4)) == !p.name.ends_with(".0.bias"));
    }
  }
}

TEST_CASE_TEMPLATE("the state holds the images of the branches, channels last", S, float, double) {
  using T = TensorOf<S>;
  const MdeqConfig c = three_branches();
  for (const Index count : {1, 3}) {
    const T z = random_tensor<S>({count, c.state_size()}, 1);
    const auto images = mdeq_branches(c, z);
    CHECK(images.size() == 3);
    CHECK(same_bits(mdeq_state(images), z));
    const T nchw = mdeq_state_to_nchw(c, z);
    CHECK(same_bits(mdeq_state_from_nchw(c, nchw), z));
    Index first = 0;
    for (Index i = 0; i < 3; ++i) {
      const Index side = c.resolution(i), channels = c.channels_of(i);
      const T image = images[static_cast<std::size_t>(i)];
      REQUIRE(image.shape() == Shape{count, side, side, channels});
      CHECK((image.data() == z.data() + first) == (count == 1));
      bool same = true;
      for (Index n = 0; n < count; ++n)
        for (Index ch = 0; ch < channels; ++ch)
          for (Index p = 0; p < side * side; ++p) {
            const S here = image.data()[(n * side * side + p) * channels + ch];
            same = same && here == z.data()[n * c.state_size() + first + p * channels + ch];
            same = same && here == nchw.data()[n * c.state_size() + first + ch * side * side + p];
          }
      CHECK(same);
      first += c.branch_size(i);
    }
  }
}

TEST_CASE("a configuration that makes no network is refused, and says why") {
  const auto refuse = [](auto change, const std::string& part) {
    MdeqConfig c = three_branches();
    change(c);
    check_error<InvalidArgument>([&] { MdeqLayout{c}; }, {"MdeqConfig: " + part});
  };
  using C = MdeqConfig;
  refuse([](C& c) { c.channels.clear(); }, "needs at least one branch");
  refuse([](C& c) { c.head_channels.pop_back(); }, "3 branches but 2 head_channels");
  refuse([](C& c) { c.final_channels = 0; }, "final_channels must be >= 1, got 0");
  refuse([](C& c) { c.classes = 0; }, "classes must be >= 1, got 0");
  refuse([](C& c) { c.image_channels = -1; }, "image_channels must be >= 1, got -1");
  refuse([](C& c) { c.expansion = 0; }, "expansion must be >= 1, got 0");
  refuse([](C& c) { c.dropout = 1; }, "dropout must be in [0, 1), got 1");
  refuse([](C& c) { c.dropout = -0.1; }, "dropout must be in [0, 1), got -0.1");
  refuse([](C& c) { c.groups = 3; }, "groups must be even, got 3");
  refuse([](C& c) { c.groups = 0; }, "groups must be even, got 0");
  refuse([](C& c) { c.channels[1] = 10; }, "channels of branch 1 must be a multiple of 4, got 10");
  refuse([](C& c) { c.channels[2] = 0; }, "channels of branch 2 must be a multiple of 4, got 0");
  refuse([](C& c) { c.head_channels[0] = 0; }, "head_channels of branch 0 must be >= 1, got 0");
  refuse([](C& c) { c.image_size = 6; }, "image_size 6 cannot be halved 2 times");
  refuse([](C& c) { c.image_size = 0; }, "image_size 0 cannot be halved 2 times");
}

TEST_CASE("a batch that does not fit is refused, and nothing broadcasts") {
  Setup<double> s(three_branches());
  auto classifier = s.classifier(Jfb{});
  const auto train = [&](Index side, std::size_t masks) {
    classifier.train(TensorOf<double>({4, 1, side, side}, 1.0), s.labels,
                     std::span(s.masks).first(masks));
  };
  check_error<InvalidArgument>([&] { train(12, 2); }, {"needs 3 dropout masks or none, got 2"});
  check_error<ShapeError>([&] { train(1, 3); },
                          {"images must be (N, 1, 12, 12), got (4, 1, 1, 1)"});
}

TEST_CASE_TEMPLATE("weights go to a file and come back with the same bits", S, float, double) {
  namespace fs = std::filesystem;
  using Other = std::conditional_t<std::is_same_v<S, float>, double, float>;
  const fs::path path = fs::temp_directory_path() / message("deq_model_test_", ::getpid());
  Setup<S> saved(three_branches()), loaded(three_branches());
  saved.classifier(Jfb{}).train(saved.images, saved.labels);
  SafetensorsWriter all;
  saved.model.save(all);
  all.add<float>("of another program", {1}, std::array{1.0F});
  all.write(path);
  const auto file = SafetensorsFile::open(path);
  loaded.model = Mdeq<Cpu<S>>(three_branches(), 99);
  loaded.model.load(file);
  CHECK(loaded.content() == saved.content());
  CHECK(same_bits(loaded.classifier(Jfb{}).logits(saved.images),
                  saved.classifier(Jfb{}).logits(saved.images)));

  Setup<Other> cast(three_branches());
  cast.model.load(file);
  const auto from = saved.content();
  const auto to = cast.content();
  for (std::size_t i = 0; i < from.size(); ++i)
    CHECK(to[i] == std::vector<Other>(from[i].begin(), from[i].end()));

  // The same file but for one tensor, which is missing, or `add` writes it: nothing is loaded.
  loaded.model = Mdeq<Cpu<S>>(three_branches(), 99);
  const auto refused = [&](const std::string& name, const auto& add, const std::string& why) {
    SafetensorsWriter writer;
    for (const std::string& other : file.names())
      if (other != name && file.dtype(other) != Dtype::i64)
        writer.add<S>(other, file.shape(other), file.read<S>(other));
    add(writer);
    writer.write(path);
    const auto before = loaded.content();
    check_error<FormatError>([&] { loaded.model.load(SafetensorsFile::open(path)); }, {why});
    CHECK(loaded.content() == before);
    all.write(path);
  };
  for (const auto& [name, shape] : std::map<std::string, std::string>{
           {"classifier.weight", "(5, 6)"}, {"downsample.4.running_var", "(4)"}}) {
    refused(
        name, [](SafetensorsWriter&) {}, "no tensor \"" + name + '"');
    refused(
        name,
        [n = name](SafetensorsWriter& w) {
          w.add<S>(n, {1, 2}, std::array<S, 2>{});
        },
        '"' + name + "\" has shape (1, 2), not " + shape);
  }
  const std::string batches = "downsample.4.num_batches_tracked";
  const auto refused_batches = [&](const Shape& shape, const auto& values, const std::string& why) {
    using T = typename std::remove_cvref_t<decltype(values)>::value_type;
    refused(
        batches, [&](SafetensorsWriter& w) { w.add<T>(batches, shape, values); },
        '"' + batches + "\" " + why);
  };
  refused_batches({0}, std::array<std::int64_t, 0>{}, "has shape (0), it should be one number");
  refused_batches({2}, std::array<std::int64_t, 2>{1, 2}, "has shape (2)");
  refused_batches({}, std::array{1.5F}, "has floating-point elements");
  refused_batches({}, std::array<std::int64_t, 1>{-7}, "should be >= 0, it is -7");
  fs::remove(path);
}

TEST_CASE_TEMPLATE("f: a sample does not notice its neighbours", S, float, double) {
  const MdeqConfig c = three_branches();
  Setup<S> s(c);
  const auto all = s.model.values();
  const auto theta = s.model.layer_parameters(std::span<const TensorOf<S>>(all));
  for (const bool dropout : {false, true}) {
    // State, injection and masks of a sample as one row, which is what check_samples takes apart.
    const auto f = [&]<class V>(const V& rows) {
      Index first = 0;
      const auto take = [&](const Shape& shape) {
        const Index size = shape.product(1, shape.rank());
        return reshape(slice(rows, 1, std::exchange(first, first + size), size), shape);
      };
      const Index n = rows.extent(0);
      const V z = take({n, c.state_size()});
      std::vector<V> x{take({n, c.image_size, c.image_size, c.channels_of(0)})};
      for (Index i = 0; dropout && i < c.branches(); ++i)
        x.push_back(take({n, c.channels_of(i), 1, 1}));
      const std::vector<V> parameters(theta.begin(), theta.end());
      return s.model.function(dropout)(z, std::span<const V>(x), std::span<const V>(parameters));
    };
    const Index width = c.state_size() + c.branch_size(0) + (dropout ? 4 + 12 + 8 : 0);
    const auto rows = random_tensor<S>({5, width}, 4), shuffled = rows.clone();
    deq_test::check_samples(dropout ? "with masks" : "without masks", f, rows);
    const std::array<Index, 5> order{3, 0, 4, 2, 1};
    Index n = 0;
    for (const Index from : order)
      std::copy_n(rows.rows(from, 1).data(), width, shuffled.rows(n++, 1).data());
    const auto y = f(rows), again = f(shuffled);
    n = 0;
    for (const Index from : order) CHECK(same_bits(again.rows(n++, 1), y.rows(from, 1)));
  }
}

TEST_CASE_TEMPLATE("evaluation: an image does not notice its neighbours", S, float, double) {
  Setup<S> s(three_branches(), 6);
  const Index size = s.images.size() / 6;
  for (Index i = 0; i < size; ++i) {
    s.images.data()[size + i] *= S(0.01);  // for another number of iterations
    s.images.data()[4 * size + i] = static_cast<S>(deq_test::not_a_number);
  }
  const Broyden<> solver{.stopping = {.max_iterations = 200, .relative_tolerance = 1e-5},
                         .memory = 200};
  auto together = s.classifier(Jfb{}, solver), alone = s.classifier(Jfb{}, solver);
  const auto logits = together.logits(s.images);
  const auto& reports = together.solution().report.samples;
  CHECK(reports[4].status == SolveStatus::non_finite);
  CHECK(reports[0].iterations != reports[1].iterations);
  for (const std::size_t n : {0U, 1U, 2U, 3U, 5U}) {
    const auto row = static_cast<Index>(n);
    CHECK(same_bits(alone.logits(s.images.rows(row, 1)), logits.rows(row, 1)));
    CHECK(alone.solution().report.samples[0].iterations == reports[n].iterations);
    CHECK(reports[n].converged());
  }
}

TEST_CASE("a training pass: same bits for any number of threads, no new memory") {
  // Large enough for the kernels outside the equilibrium to share their work.
  MdeqConfig c = one_branch();
  c.image_size = 32;
  const auto pass = [&](int threads) {
    const Threads scope(threads);
    Setup<float> s(c, 6);
    auto classifier = s.classifier(Gdeq{}, Broyden<>{.stopping = {.max_iterations = 6}});
    classifier.layer().schedule.block = 2;
    const double loss = classifier.train(s.images, s.labels, s.masks).loss;
    return std::pair(loss, s.gradients());
  };
  const auto one = pass(1);
  CHECK(pass(2) == one);
  CHECK(pass(3) == one);

  const Threads scope(1);
  HostPool::instance().trim();  // what other tests left there would feed a leak
  Setup<float> s(one_branch());
  auto gdeq = s.classifier(Gdeq{});
  auto implicit = s.classifier(Implicit<>{});
  const auto requests = [&](int times) {
    for (int k = 0; k < times; ++k) {
      gdeq.train(s.images, s.labels, s.masks);
      implicit.train(s.images, s.labels);
    }
    return HostPool::instance().system_requests();
  };
  const auto after_the_first = requests(3);
  CHECK(requests(30) == after_the_first);
}

namespace {

const Stopping tight{.max_iterations = 300, .relative_tolerance = 1e-13, .stall_window = 0};
const Broyden<> tight_broyden{.stopping = tight, .memory = 300};

/// The slope of the loss along random directions of all parameters against central differences of
/// the loss, the equilibrium solved again for each. That no ReLU changes sides within a step shows
/// in a difference quotient that has settled.
template <class Policy>
void check_slopes(const MdeqConfig& c, Policy policy, bool dropout) {
  using T = TensorOf<double>;
  Setup<double> s(c, 3);
  auto classifier = s.classifier(policy, tight_broyden);
  const auto loss = [&] {
    return classifier.train(s.images, s.labels, dropout ? s.masks : std::vector<T>()).loss;
  };
  loss();
  const auto values = s.model.values();
  const auto gradients = s.gradients();
  for (const std::uint64_t direction : {1, 2, 3, 4}) {
    CAPTURE(direction);
    double slope = 0;
    std::vector<T> towards;
    for (std::size_t i = 0; i < values.size(); ++i) {
      towards.push_back(random_tensor(values[i].shape(), 1000 * direction + i));
      slope += std::inner_product(gradients[i].begin(), gradients[i].end(), towards[i].data(), 0.0);
    }
    const auto loss_at = [&](double t) {
      for (std::size_t i = 0; i < values.size(); ++i)
        s.model.parameters()[i].value = values[i] + towards[i] * T(Shape{}, t);
      return loss();
    };
    const auto quotient = [&](double h) { return (loss_at(h) - loss_at(-h)) / (2 * h); };
    const double wide = quotient(2e-6), narrow = quotient(1e-6);
    CHECK(std::abs(wide - narrow) <= 1e-6 * std::abs(narrow));
    CHECK(std::abs(slope - narrow) <= 1e-6 * std::abs(narrow));
  }
}

}  // namespace

TEST_CASE("case G: the gradient of a whole training pass is that of finite differences") {
  MdeqConfig two = one_branch();
  two.channels = {4, 8}, two.head_channels = {1, 2};
  for (const bool dropout : {false, true}) {
    CAPTURE(dropout);
    check_slopes(one_branch(), Implicit<>{tight_broyden}, dropout);
    check_slopes(one_branch(), Unrolled{5}, dropout);
    check_slopes(two, Implicit<>{tight_broyden}, dropout);
  }
}

TEST_CASE("methods that are equal by definition give equal gradients") {
  Setup<double> s(three_branches());
  const auto results = [&](auto policy, auto solver) {
    auto classifier = s.classifier(policy, solver);
    classifier.train(s.images, s.labels, s.masks);
    auto list = s.gradients();
    list.push_back(classifier.last_logits().to_host());
    return list;
  };
  const Broyden<> none{.memory = 0}, pairs{.memory = 50};
  CHECK(results(Gdeq{}, none) == results(Jfb{}, none));
  CHECK(results(Npg{1, 1.0}, pairs) == results(Jfb{}, pairs));
  CHECK(distance(results(Gdeq{}, pairs), results(Jfb{}, pairs)) > 1e-3);
  const Broyden<StepsOnly> steps{.memory = 50};
  CHECK(distance(results(Gdeq{}, steps), results(Gdeq{}, pairs)) < 1e-9);
  const Implicit<Gmres> gmres{{.stopping = tight, .restart = 150}};
  CHECK(distance(results(gmres, pairs), results(Implicit<>{tight_broyden}, pairs)) < 1e-9);
}

TEST_CASE("the head sees f(z) in training, z in evaluation, f(f(... 0)) before the equilibrium") {
  using T = TensorOf<double>;
  Setup<double> s(three_branches());
  const auto all = s.model.values();
  const std::span<const T> values(all);
  const std::vector<T> x{s.model.stem(s.images, values, BatchNormMode::evaluate)};
  const T zero({4, s.model.config().state_size()}, 0.0);
  const auto head = [&](const T& z) { return s.model.head(z, values, BatchNormMode::evaluate); };
  const T once = head(specified_f<double>(s.model, zero, x, {}));
  const auto same = [](const T& a, const T& b) {
    return distance<double>({a.to_host()}, {b.to_host()}) < 1e-12;
  };

  auto still = s.classifier(Jfb{}, Broyden<>{.stopping = {.max_iterations = 0}});
  auto unrolled = s.classifier(Unrolled{1});
  still.norm_mode = unrolled.norm_mode = BatchNormMode::evaluate;
  still.train(s.images, s.labels);
  unrolled.train(s.images, s.labels);
  CHECK(same(still.last_logits(), once));
  CHECK(same(still.logits(s.images), head(zero)));
  CHECK(same(unrolled.last_logits(), once));
  CHECK(same(unrolled.logits(s.images), once));
  // The length of v is no matter, that of g is.
  const auto scale = [&](const std::string& name) {
    for (auto& p : s.model.parameters())
      if (p.name.ends_with(name)) p.value = p.value * T(Shape{}, 4.0);
    return unrolled.logits(s.images);
  };
  CHECK(same(scale("weight_v"), once));
  CHECK(!same(scale("weight_g"), once));
}

TEST_CASE("dropout and running statistics belong to training") {
  Setup<double> s(three_branches());
  auto classifier = s.classifier(Jfb{});
  const auto before = s.content();
  const double evaluated = classifier.evaluate(s.images, s.labels).loss;
  CHECK(s.content() == before);
  const double trained = classifier.train(s.images, s.labels).loss;
  const auto after = s.content();
  for (std::size_t i = 0; i < after.size(); ++i)
    CHECK((after[i] == before[i]) == (i < s.model.parameters().size()));
  for (const auto& norm : s.model.batch_norms()) CHECK(norm.batches == 1);
  classifier.norm_mode = BatchNormMode::evaluate;
  classifier.train(s.images, s.labels);
  CHECK(s.content() == after);

  classifier.norm_mode = BatchNormMode::train;
  std::vector<TensorOf<double>> ones;
  for (const auto& mask : s.masks) ones.emplace_back(mask.shape(), 1.0);
  CHECK(classifier.train(s.images, s.labels, ones).loss == trained);
  const double dropped = classifier.train(s.images, s.labels, s.masks).loss;
  CHECK(dropped != trained);
  // The configuration's rate is for whoever draws the masks: a pass multiplies what it is given.
  MdeqConfig c = three_branches();
  c.dropout = 0;
  Setup<double> same(c);
  CHECK(same.classifier(Jfb{}).evaluate(s.images, s.labels).loss == evaluated);
  CHECK(same.classifier(Jfb{}).train(s.images, s.labels, s.masks).loss == dropped);
}

TEST_CASE("a fresh network is initialised as the original is") {
  const Mdeq<Cpu<double>> net(MdeqConfig::tiny(), 1), same(MdeqConfig::tiny(), 1),
      other(MdeqConfig::tiny(), 2);
  std::map<std::string, std::vector<double>> seen;
  for (std::size_t i = 0; i < net.parameters().size(); ++i) {
    const std::string& name = net.parameters()[i].name;
    const auto& value = net.parameters()[i].value;
    CAPTURE(name);
    const std::vector<double> x = seen[name] = value.to_host();
    CHECK(same.parameters()[i].value.to_host() == x);
    const bool random = name.find("weight_") != name.npos || value.shape().rank() > 1 ||
                        name.ends_with(".0.bias") || name == "classifier.bias";
    CHECK((other.parameters()[i].value.to_host() != x) == random);
    const auto n = static_cast<double>(x.size());
    const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
    const double square = std::inner_product(x.begin(), x.end(), x.begin(), 0.0) / n;
    if (!random) {
      CHECK(x == std::vector<double>(x.size(), name.ends_with("weight") ? 1 : 0));
    } else if (name.ends_with("weight_g")) {
      const std::vector<double> v = net.parameters()[i + 1].value.to_host();
      const std::size_t width = v.size() / x.size();
      for (std::size_t o = 0; o < x.size(); ++o) {
        const double* row = v.data() + o * width;
        CHECK(x[o] == doctest::Approx(std::sqrt(std::inner_product(row, row + width, row, 0.0))));
      }
    } else if (name.ends_with("weight_v") || name.starts_with("classifier")) {
      const Index fan_in = value.shape().rank() > 1 ? value.size() / value.extent(0) : 200;
      const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
      CHECK(*std::max_element(x.begin(), x.end()) <= bound);
      CHECK(*std::min_element(x.begin(), x.end()) >= -bound);
      CHECK(std::abs(mean) < 4 * bound / std::sqrt(3 * n));
      CHECK(std::abs(square - bound * bound / 3) < 4 * bound * bound * std::sqrt(4 / (45 * n)));
    } else {
      CHECK(std::abs(mean) < 4 * 0.01 / std::sqrt(n));
      CHECK(std::abs(square - 1e-4) < 4 * 1e-4 * std::sqrt(2 / n));
    }
  }
  CHECK(seen["fullstage.branches.0.blocks.0.conv1.weight_v"] !=
        seen["fullstage.branches.1.blocks.0.conv1.weight_v"]);
}
