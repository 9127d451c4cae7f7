// SPDX-License-Identifier: MIT
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include "../examples/support/cli.hpp"
#include "../examples/support/csv.hpp"
#include "../examples/support/interrupt.hpp"
#include "../examples/support/progress.hpp"
#include "../examples/support/svg_plot.hpp"
#include "../examples/support/table.hpp"
#include "../examples/support/text.hpp"

using namespace examples;

namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

/// A program with an option of every kind.
struct Program {
  int epochs = 3;
  std::uint64_t seed = 1;
  double rate = 1e-3;
  double share = 0.5;
  std::string data = "here", model = "tiny";
  std::vector<std::string> compare;
  bool quiet = false;
  CommandLine cli{"program", "Does something with some data."};

  Program() {
    cli.option("--epochs N", epochs, "passes over the data", {.min = 1});
    cli.option("--seed N", seed, "names the random numbers");
    cli.section("Numbers");
    cli.option("--rate X", rate, "learning rate");
    cli.option("--share X", share, "of the data", {.min = 0, .max = 1});
    cli.section("Words");
    cli.option("--data DIR", data, "where the data are");
    cli.choice("--model", model, {"tiny", "large"}, "size");
    cli.choices("--compare", compare, {"implicit", "jfb", "gdeq"}, "methods");
    cli.flag("--quiet", quiet, "say nothing");
  }
  Program(const Program&) = delete;

  bool parse(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "program");
    return cli.parse(static_cast<int>(arguments.size()), arguments.data());
  }
};

/// What a wrong command line is answered.
std::string complaint(std::vector<const char*> arguments) {
  try {
    Program().parse(std::move(arguments));
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

/// A path in a new directory that goes with the object.
struct TemporaryPath {
  TemporaryPath() {
    std::string pattern = (std::filesystem::temp_directory_path() / "deq-test-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    path = directory / "file";
  }
  ~TemporaryPath() { std::filesystem::remove_all(directory); }
  TemporaryPath(const TemporaryPath&) = delete;

  std::string content() const {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  std::filesystem::path directory, path;
};

int occurrences(std::string_view text, std::string_view piece) {
  int count = 0;
  for (std::size_t at = 0; (at = text.find(piece, at)) != text.npos; at += piece.size()) ++count;
  return count;
}

/// Why a document is not well-formed XML (of the kind that svg() writes); empty if it is.
std::string xml_error(std::string_view text) {
  std::vector<std::string> open;
  bool root_closed = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '&') {
      const std::string_view rest = text.substr(i);
      const bool known = rest.starts_with("&amp;") || rest.starts_with("&lt;") ||
                         rest.starts_with("&gt;") || rest.starts_with("&quot;");
      if (!known) return "a bare &";
    }
    if (text[i] == '>') return "a bare >";
    if (text[i] != '<') {
      if (open.empty() && text[i] != '\n') return "text outside the root";
      continue;
    }
    if (root_closed) return "two roots";
    // To the end of the tag, whose attributes may hold anything but < between their quotes.
    std::size_t end = i + 1;
    for (bool quoted = false; end < text.size() && (quoted || text[end] != '>'); ++end) {
      if (text[end] == '"') quoted = !quoted;
      if (text[end] == '<') return "a < inside a tag";
    }
    if (end == text.size()) return "a tag without end";
    const std::string tag(text.substr(i + 1, end - i - 1));
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag.front() == '/') {
      if (open.empty() || '/' + open.back() != tag) return "unexpected <" + tag + '>';
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    root_closed = open.empty();
    i = end;
  }
  return root_closed ? "" : "open at the end";
}

}  // namespace

TEST_CASE("texts of numbers") {
  CHECK(fixed(1.2345, 2) == "1.23");
  CHECK(fixed(none, 2) == "-");
  CHECK(scientific(1.23e-3, 1) == "1.2e-03");
  CHECK(shortest(0.1) == "0.1");
  CHECK(hours_minutes_seconds(0) == "00:00:00");
  CHECK(hours_minutes_seconds(3661.4) == "01:01:01");
  CHECK(hours_minutes_seconds(360000) == "100:00:00");
  CHECK(hours_minutes_seconds(-1) == "00:00:00");
  CHECK(hours_minutes_seconds(none) == "--:--:--");
  CHECK(hours_minutes_seconds(infinity) == "--:--:--");
  CHECK(display_width("1.00×") == 5);
}

TEST_CASE("a command line sets what it names and leaves the rest") {
  Program program;
  CHECK(
      program.parse({"--epochs", "10", "--rate=1e-4", "--quiet", "--model", "large", "--compare",
                     "gdeq,jfb", "--data=a b", "--share", "1", "--seed", "18446744073709551615"}));
  CHECK(program.epochs == 10);
  CHECK(program.rate == 1e-4);
  CHECK(program.share == 1);
  CHECK(program.seed == std::numeric_limits<std::uint64_t>::max());
  CHECK(program.quiet);
  CHECK(program.model == "large");
  CHECK(program.compare == std::vector<std::string>{"gdeq", "jfb"});
  CHECK(program.data == "a b");

  Program untouched;
  CHECK(untouched.parse({}));
  CHECK(untouched.epochs == 3);
  CHECK_FALSE(untouched.quiet);

  Program twice;
  CHECK(twice.parse({"--epochs", "4", "--rate", "-2", "--epochs", "5"}));
  CHECK(twice.epochs == 5);
  CHECK(twice.rate == -2);
}

TEST_CASE("a wrong command line is answered with what was expected") {
  CHECK(complaint({"--epoch", "1"}) == "unknown option --epoch, did you mean --epochs?");
  CHECK(complaint({"--modle=tiny"}) == "unknown option --modle, did you mean --model?");
  CHECK(complaint({"-epochs", "1"}) == "unknown option -epochs, did you mean --epochs?");
  CHECK(complaint({"--nonsense"}) == "unknown option --nonsense; --help lists them all");
  CHECK(complaint({"stray"}) == "unexpected argument 'stray'");
  CHECK(complaint({"--epochs"}) == "--epochs needs a value: an integer >= 1");
  CHECK(complaint({"--data", "--quiet"}) == "--data needs a value: a text that is not empty");
  CHECK(complaint({"--epochs", "0"}) == "--epochs: expected an integer >= 1, got '0'");
  CHECK(complaint({"--epochs", "2.5"}) == "--epochs: expected an integer >= 1, got '2.5'");
  CHECK(complaint({"--epochs", "99999999999"}) ==
        "--epochs: expected an integer >= 1, got '99999999999'");
  CHECK(complaint({"--seed", "-1"}) == "--seed: expected an integer >= 0, got '-1'");
  CHECK(complaint({"--rate", "fast"}) == "--rate: expected a number, got 'fast'");
  CHECK(complaint({"--rate", "nan"}) == "--rate: expected a number, got 'nan'");
  CHECK(complaint({"--rate", "inf"}) == "--rate: expected a number, got 'inf'");
  CHECK(complaint({"--share", "1.5"}) == "--share: expected a number from 0 to 1, got '1.5'");
  CHECK(complaint({"--data="}) == "--data: expected a text that is not empty, got ''");
  CHECK(complaint({"--model", "huge"}) == "--model: expected one of tiny, large, got 'huge'");
  CHECK(complaint({"--quiet=yes"}) == "--quiet takes no value, got 'yes'");
  const std::string list =
      "--compare: expected a comma-separated list, without repetition, of implicit, jfb, gdeq, "
      "got ";
  CHECK(complaint({"--compare", "jfb,bfj"}) == list + "'jfb,bfj'");
  CHECK(complaint({"--compare", "jfb,jfb"}) == list + "'jfb,jfb'");
  CHECK(complaint({"--compare", "jfb,"}) == list + "'jfb,'");
  CHECK(complaint({"--compare="}) == list + "''");
}

TEST_CASE("the help shows every option with its default, in 80 columns") {
  const Program program;
  CHECK(program.cli.help() ==
        R"(Usage: program [options]

Does something with some data.

Options:
  --epochs N              passes over the data (3)
  --seed N                names the random numbers (1)

Numbers:
  --rate X                learning rate (0.001)
  --share X               of the data (0.5)

Words:
  --data DIR              where the data are (here)
  --model tiny|large      size (tiny)
  --compare LIST          methods: a comma-separated list of implicit, jfb, gdeq
  --quiet                 say nothing

  -h, --help              print this text
)");
  CommandLine wide("program", std::string(30, 'a') + ' ' + std::string(60, 'b'));
  int x = 0;
  wide.option("--an-option-with-a-long-name N", x, "a long text that says " + repeat("and ", 20));
  const std::string help = wide.help();
  for (std::size_t begin = 0; begin < help.size();) {
    const std::size_t end = help.find('\n', begin);
    CHECK(end - begin <= 80);
    begin = end + 1;
  }
}

TEST_CASE("run_program maps errors to exit codes") {
  CHECK(run_program("program", [] { return 0; }) == 0);
  CHECK(run_program("program", []() -> int { throw UsageError("expected by a test"); }) == 2);
  CHECK(run_program("program", []() -> int { throw deq::IoError("expected by a test"); }) == 1);
}

TEST_CASE("a progress line keeps to the width, whatever it is") {
  const Progress progress{.label = "gdeq",
                          .epoch = 3,
                          .epochs = 50,
                          .fraction = 0.429,
                          .loss = 1.2345,
                          .accuracy = 0.567,
                          .images_per_second = 812.3,
                          .iterations = 17.4,
                          .residual = 1.23e-3,
                          .seconds_left = 4554};
  CHECK(progress_line(progress, 95) ==
        "gdeq  epoch 3/50  42%  loss 1.234  acc 56.7%  img/s 812  iter 17.4  res 1.2e-03  left "
        "01:15:54");
  CHECK(progress_line(progress, 70) ==
        "gdeq  epoch 3/50  42%  loss 1.234  acc 56.7%  img/s 812  left 01:15:54");
  CHECK(progress_line(progress, 105).find("  ===......  loss") != std::string::npos);
  CHECK(progress_line(progress, 105, {.bar = false}).find('=') == std::string::npos);
  for (int width = 0; width < 200; ++width)
    CHECK(display_width(progress_line(progress, width, {.unicode = true})) <= width);

  // Colours take no columns.
  std::string coloured = progress_line(progress, 120, {.colour = true});
  CHECK(coloured.find('\x1b') != std::string::npos);
  for (std::size_t at; (at = coloured.find('\x1b')) != std::string::npos;)
    coloured.erase(at, coloured.find('m', at) - at + 1);
  CHECK(coloured == progress_line(progress, 120));
}

TEST_CASE("a progress line leaves out what is not known") {
  CHECK(progress_line({}, 80, {.bar = false}) == "  0%");
  CHECK(progress_line({.epoch = 1, .epochs = 2, .fraction = 1.5}, 80, {.bar = false}) ==
        "epoch 1/2 100%");
  CHECK(progress_line({.loss = infinity, .images_per_second = 3.14}, 80, {.bar = false}) ==
        "  0%  img/s 3.1");
}

TEST_CASE("away from a terminal, progress is plain lines, few of them") {
  std::FILE* const file = std::tmpfile();
  REQUIRE(file != nullptr);
  {
    ProgressBar bar(file, 3600);
    for (int step = 0; step <= 100; ++step) bar.update({.fraction = step / 100.0, .loss = 2});
  }
  std::rewind(file);
  std::string text(1000, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  CHECK(text == "  0%  loss 2.000\n100%  loss 2.000  left 00:00:00\n");
}

TEST_CASE("a table lines its columns up") {
  Table table({"method", "accuracy", "x"});
  table.row({"Implicit", "57.1 ± 0.2", "1"});
  table.row({"a|b", "5", "12"});
  CHECK(table.text() ==
        "method      accuracy   x\n"
        "--------  ----------  --\n"
        "Implicit  57.1 ± 0.2   1\n"
        "a|b                5  12\n");
  CHECK(table.markdown() ==
        "| method   |   accuracy |   x |\n"
        "| -------- | ---------: | --: |\n"
        "| Implicit | 57.1 ± 0.2 |   1 |\n"
        "| a\\|b     |          5 |  12 |\n");
  CHECK_THROWS_AS(table.row({"too", "short"}), deq::ShapeError);
}

TEST_CASE("a CSV log has one header, and quotes what it must") {
  const TemporaryPath file;
  CsvLog log(file.path, {"step", "method", "loss"});
  log.row(1, "gdeq", 0.1);
  log.row(2, std::string("a,\"b\""), none);
  CHECK(file.content() == "step,method,loss\n1,gdeq,0.1\n2,\"a,\"\"b\"\"\",nan\n");
  CHECK_THROWS_AS(log.row(3), deq::ShapeError);
}

TEST_CASE("a resumed CSV log takes back what came after the checkpoint") {
  const TemporaryPath file;
  const std::vector<std::string> columns = {"step", "loss"};
  {
    CsvLog log(file.path, columns);
    for (int step = 10; step <= 40; step += 10) log.row(step, step / 100.0);
  }
  std::ofstream(file.path, std::ios::app) << "50,0.";  // killed in the middle of a row
  CsvLog::resume(file.path, columns, 20).row(25, 0.25);
  CHECK(file.content() == "step,loss\n10,0.1\n20,0.2\n25,0.25\n");

  CsvLog::resume(file.path, columns, 100).row(101, 1);
  CHECK(file.content() == "step,loss\n10,0.1\n20,0.2\n25,0.25\n101,1\n");

  CHECK_THROWS_AS(CsvLog::resume(file.path, {"step", "accuracy"}, 5), deq::FormatError);
  std::ofstream(file.path, std::ios::app) << "one,1\n";
  CHECK_THROWS_AS(CsvLog::resume(file.path, columns, 1000), deq::FormatError);

  const TemporaryPath missing;
  CsvLog::resume(missing.path, columns, 5).row(6, 0);
  CHECK(missing.content() == "step,loss\n6,0\n");
}

TEST_CASE("a CSV log that cannot be written says so") {
  const TemporaryPath file;
  CHECK_THROWS_AS(CsvLog(file.directory / "missing" / "log.csv", {"step"}), deq::IoError);
}

TEST_CASE("a chart is well-formed, whatever its texts") {
  const Plot plot{.title = "a < b & \"c\" > d",
                  .subtitle = "with a bell\a",
                  .x_label = "<x>",
                  .y_label = "&y",
                  .series = {{"<one>", {0, 1, 2}, {1, 2, 3}}, {"R&D", {0, 1, 2}, {3, 2, 1}}}};
  const std::string text = svg(plot);
  CHECK(xml_error(text) == "");
  CHECK(text.find("&lt;one&gt;") != std::string::npos);
  CHECK(text.find("R&amp;D") != std::string::npos);
  CHECK(text.find('\a') == std::string::npos);
  CHECK(text.find("nan") == std::string::npos);
  CHECK(occurrences(text, "<path") == 2);
  CHECK(xml_error("<a>&</a>") == "a bare &");
  CHECK(xml_error("<a><b></a>") == "unexpected </a>");
}

TEST_CASE("a chart draws the points that it can") {
  SUBCASE("no series") {
    const std::string text = svg({});
    CHECK(xml_error(text) == "");
    CHECK(text.find("no data") != std::string::npos);
  }
  SUBCASE("empty series") {
    const std::string text = svg({.series = {{"a", {}, {}}, {"b", {1}, {none}}}});
    CHECK(text.find("no data") != std::string::npos);
    CHECK(occurrences(text, "<path") == 0);
  }
  SUBCASE("one point") {
    for (const double value : {0.0, 4.0, -1e20, 1e-9}) {
      const std::string text = svg({.series = {{"a", {3}, {value}}}});
      CHECK(xml_error(text) == "");
      CHECK(occurrences(text, "<circle") >= 1);
      CHECK(text.find("nan") == std::string::npos);
      CHECK(text.find("inf") == std::string::npos);
    }
  }
  SUBCASE("NaN and infinity are left out") {
    const Plot gaps{.series = {{"a", {0, 1, 2, none, 4}, {0, none, infinity, 3, 4}}}};
    const Plot clean{.series = {{"a", {0, 4}, {0, 4}}}};
    CHECK(svg(gaps) == svg(clean));
  }
  SUBCASE("values that are not positive have no logarithm") {
    const Plot gaps{.series = {{"a", {0, 1, 2, 3}, {1, 0, -1, 1e-6}}}, .log_y = true};
    const Plot clean{.series = {{"a", {0, 3}, {1, 1e-6}}}, .log_y = true};
    CHECK(svg(gaps) == svg(clean));
    CHECK(svg(gaps).find("10⁻⁶") != std::string::npos);
  }
  SUBCASE("a logarithmic axis of any range") {
    for (const double most : {1.0, 1.5, 3.0, 10.0, 99.0, 1e9, 1e200}) {
      const std::string text = svg({.series = {{"a", {0, 1}, {1, most}}}, .log_y = true});
      CHECK(xml_error(text) == "");
      CHECK(text.find("nan") == std::string::npos);
    }
    CHECK(xml_error(svg({.log_y = true})) == "");
  }
  SUBCASE("a long log stays a small file") {
    Plot plot{.series = {{"a", {}, {}}}};
    for (int i = 0; i < 100000; ++i) {
      plot.series[0].x.push_back(i);
      plot.series[0].y.push_back(std::sin(i * 12.9898) + i * 1e-5);
    }
    CHECK(svg(plot).size() < 60000);
  }
  SUBCASE("x and y must pair") {
    CHECK_THROWS_AS(svg({.series = {{"a", {1, 2}, {1}}}}), deq::ShapeError);
  }
}

TEST_CASE("ticks are round numbers that cover the data") {
  const auto labels = [](const detail::Axis& axis) {
    std::vector<std::string> texts;
    for (const auto& tick : axis.ticks()) texts.push_back(tick.label);
    return join(texts, " ");
  };
  using detail::Axis;
  CHECK(labels(Axis::linear({0.0, 57.3}, 6, true)) == "0 10 20 30 40 50 60");
  CHECK(labels(Axis::linear({-0.9, 0.95}, 4, true)) == "−1.0 −0.5 0.0 0.5 1.0");
  CHECK(labels(Axis::linear({1, 3}, 7, false)) == "1 2 3");
  CHECK(labels(Axis::linear({0, 2.5e4}, 5, false)) == "0 5,000 10,000 15,000 20,000 25,000");
  CHECK(labels(Axis::linear({0, 4e6}, 4, true)) == "0 1,000,000 2,000,000 3,000,000 4,000,000");
  CHECK(labels(Axis::logarithmic({0.04, 2.3}, 8)) == "0.02 0.05 0.1 0.2 0.5 1 2 5");
  CHECK(labels(Axis::logarithmic({2e-5, 0.5}, 8)) == "10⁻⁵ 10⁻⁴ 10⁻³ 10⁻² 10⁻¹ 10⁰");
  const Axis axis = Axis::linear({0.0, 57.3}, 6, true);
  CHECK(axis.position(0) == 0);
  CHECK(axis.position(60) == doctest::Approx(1));
}

TEST_CASE("names stand at the ends of the lines, or in a legend where they do not fit") {
  // A legend's swatches have no opacity and lie above the axes: they are counted by their width.
  const auto has_legend = [](const Plot& plot) {
    return svg(plot).find("stroke-width=\"2.50\"") != std::string::npos;
  };
  const std::vector<double> x = {0, 1}, half = {0, 0.5};
  CHECK_FALSE(has_legend({.series = {{"a", x, {1, 2}}, {"b", x, {2, 2}}}}));
  CHECK(has_legend({.series = {{"a", x, {1, 2}}, {"b", half, {2, 2}}}}));
  CHECK(has_legend({.series = {{std::string(60, 'a'), x, {1, 2}}, {"b", x, {2, 2}}}}));
  CHECK_FALSE(has_legend({.series = {{"alone", x, {1, 2}}}}));
}

TEST_CASE("write_svg writes the chart, or says why not") {
  const TemporaryPath file;
  const Plot plot{.title = "t", .series = {{"a", {0, 1}, {1, 2}}}};
  write_svg(file.path, plot);
  CHECK(file.content() == svg(plot));
  CHECK_THROWS_AS(write_svg(file.directory / "missing" / "a.svg", plot), deq::IoError);
}

TEST_CASE("the first interruption is a request, the second one is obeyed at once") {
  {
    const InterruptGuard guard;
    CHECK_FALSE(guard.requested());
    CHECK(guard.exit_code() == 0);
    std::raise(SIGTERM);
    CHECK(guard.requested());
    CHECK(guard.exit_code() == 128 + SIGTERM);
  }
  const pid_t child = ::fork();
  if (child == 0) {
    const InterruptGuard guard;
    std::raise(SIGINT);
    std::raise(SIGINT);
    ::_exit(0);
  }
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 128 + SIGINT);
}
