// SPDX-License-Identifier: MIT
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <map>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include <deq/io/atomic_file.hpp>
#include <deq/io/json.hpp>
#include <deq/io/safetensors.hpp>

namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

/// A directory of its own for one test case, removed at its end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    static int count = 0;
    path_ =
        fs::temp_directory_path() / deq::message("deq_safetensors_test_", ::getpid(), '_', count++);
    fs::create_directory(path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(std::string_view name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path_))
      names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  fs::path path_;
};

void write_text(const fs::path& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string length_prefix(std::uint64_t length) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>((length >> (8 * i)) & 0xFF);
  return out;
}

/// The bytes of a file with that header.
std::string file_bytes(std::string_view header, std::string_view data) {
  return length_prefix(header.size()) + std::string(header) + std::string(data);
}

/// The message of the Exception that action() throws; fails the test if it throws nothing or
/// anything else.
template <class Exception, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Exception& error) {
    return error.what();
  } catch (const std::exception& error) {
    FAIL("threw another exception: " << error.what());
  }
  FAIL("threw nothing");
  return {};
}

/// Opening a file of these bytes throws a FormatError whose message has the file and every culprit.
void check_rejected(const std::string& bytes, std::initializer_list<std::string_view> culprits) {
  const TemporaryDirectory directory;
  write_text(directory / "broken.safetensors", bytes);
  const std::string text = message_of<deq::FormatError>(
      [&] { deq::SafetensorsFile::open(directory / "broken.safetensors"); });
  CAPTURE(text);
  CHECK(text.find("broken.safetensors") != std::string::npos);
  for (const std::string_view culprit : culprits) {
    CAPTURE(culprit);
    CHECK(text.find(culprit) != std::string::npos);
  }
}

/// A header with one tensor "w" of these fields, over 8 bytes of data.
std::string one_tensor(std::string_view fields) {
  return file_bytes("{\"w\":{" + std::string(fields) + "}}", "01234567");
}

const deq::Json* member(const deq::Json& json, std::string_view key) {
  const deq::Json* found = json.find(key);
  REQUIRE(found);
  return found;
}

}  // namespace

TEST_CASE("json: values of every type") {
  const deq::Json json = deq::parse_json(
      " {\"a\" : [1, -2.5e+3, true,false , null], \"b\":{\"\":\"x\"}, \"c\":[] , \"d\":{}} \n",
      "t");
  const auto& a = *member(json, "a")->get_if<deq::Json::Array>();
  REQUIRE(a.size() == 5);
  CHECK(a[0].get_if<deq::Json::Number>()->text == "1");
  CHECK(a[1].get_if<deq::Json::Number>()->text == "-2.5e+3");
  CHECK(*a[2].get_if<bool>() == true);
  CHECK(*a[3].get_if<bool>() == false);
  CHECK(a[4].get_if<std::nullptr_t>() != nullptr);
  CHECK(*member(*member(json, "b"), "")->get_if<std::string>() == "x");
  CHECK(member(json, "c")->get_if<deq::Json::Array>()->empty());
  CHECK(member(json, "d")->get_if<deq::Json::Object>()->empty());
  CHECK(json.find("e") == nullptr);
  CHECK(a[0].find("e") == nullptr);
}

TEST_CASE("json: strings, their escapes and their way back") {
  const auto parse = [](std::string_view text) {
    return *deq::parse_json(text, "t").get_if<std::string>();
  };
  CHECK(parse(R"("\" \\ \/ \b\f\n\r\t")") == "\" \\ / \b\f\n\r\t");
  CHECK(parse(R"("\u0041\u00e9\u20AC\ud83d\ude00\u0000")") ==
        "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\0"s);
  CHECK(parse("\"\xE2\x82\xAC\"") == "\xE2\x82\xAC");
  const std::string nasty = "\"\\/\n\x01\x1F \x7F\xC3\xA9\0"s;
  CHECK(parse(deq::json_string(nasty)) == nasty);
  CHECK(deq::json_string("a\n\"") == "\"a\\u000a\\\"\"");
}

TEST_CASE("json: broken text is rejected with its place") {
  const auto rejected = [](const std::string& text, std::string_view reason) {
    CAPTURE(text);
    const std::string what = message_of<deq::FormatError>([&] { deq::parse_json(text, "source"); });
    CAPTURE(what);
    CHECK(what.starts_with("source: invalid JSON at byte "));
    CHECK(what.find(reason) != std::string::npos);
  };
  rejected("", "unexpected end");
  rejected("[1,", "unexpected end");
  rejected("[1 2]", "byte 3: expected ',' or ']'");
  rejected("[1,]", "expected a value");
  rejected("{\"a\" 1}", "expected ':' after \"a\"");
  rejected("{\"a\":1,}", "expected a string as key");
  rejected("{a:1}", "expected a string as key");
  rejected("{\"a\":1 \"b\":2}", "expected ',' or '}'");
  rejected("{\"a\":1,\"b\":2,\"a\":3}", "duplicate name \"a\"");
  rejected("{\"a\":1,\"\\u0061\":3}", "duplicate name \"a\"");
  rejected("{} x", "byte 3: unexpected text after");
  rejected("tru", "expected a value");
  rejected("nul", "expected a value");
  rejected("01", "unexpected text after");
  rejected("-", "expected a value");
  rejected("+1", "expected a value");
  rejected("1.", "expected a digit after '.'");
  rejected("1e", "expected a digit in the exponent");
  rejected("\"abc", "unterminated string");
  rejected("\"a\nb\"", "control character");
  rejected("\"\\x\"", "unknown escape");
  rejected("\"\\", "unknown escape");
  rejected("\"\\u12G4\"", "four hexadecimal digits");
  rejected("\"\\u12", "four hexadecimal digits");
  rejected("\"\\ud83d\"", "unpaired surrogate");
  rejected("\"\\ud83d\\u0041\"", "unpaired surrogate");
  rejected("\"\\ude00\"", "unpaired surrogate");
  rejected(std::string(40, '['), "nested deeper than 32");
  rejected("\"\xFF\"", "not valid UTF-8");
  std::string many = "[[]";
  while (many.size() < (std::size_t{3} << 20)) many += ",[]";
  rejected(many + ']', "more than 1048576 values");
  CHECK(
      deq::parse_json(many.substr(0, many.size() - 3) + ']', "source").get_if<deq::Json::Array>());
}

TEST_CASE("utf-8: what is well-formed") {
  for (const char* good : {"", "a", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF",
                           "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
    CHECK_MESSAGE(deq::is_utf8(good), deq::json_string(good));
  for (const char* bad :
       {"\x80", "\xC1\xBF", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xE2\x82", "\xED\xA0\x80",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80"})
    CHECK_MESSAGE(!deq::is_utf8(bad), "first byte " << int{static_cast<unsigned char>(bad[0])});
}

TEST_CASE("safetensors: a file built by hand") {
  const TemporaryDirectory directory;
  // 1.5 and -2 as F32, 258 and -1 as I64, an empty and a scalar tensor; the header is not in the
  // order of the data, and has a field that this reader does not know.
  const std::string header =
      R"({"b":{"dtype":"I64","shape":[2],"data_offsets":[8,24],"note":null},)"
      R"("__metadata__":{"format":"pt","who":"h\u00e9"},)"
      R"("layer.weight":{"shape":[1,2],"dtype":"F32","data_offsets":[0,8]},)"
      R"("empty":{"dtype":"F64","shape":[3,0],"data_offsets":[24,24]},)"
      R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[24,25]}}   )";
  const std::string data =
      "\x00\x00\xC0\x3F\x00\x00\x00\xC0"s
      "\x02\x01\x00\x00\x00\x00\x00\x00\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"s
      "\xC8"s;
  write_text(directory / "hand.safetensors", file_bytes(header, data));

  const auto file = deq::SafetensorsFile::open(directory / "hand.safetensors");
  CHECK(file.names() == std::vector<std::string>{"layer.weight", "b", "empty", "scalar"});
  CHECK(file.contains("b"));
  CHECK_FALSE(file.contains("__metadata__"));
  CHECK_FALSE(file.contains("c"));
  CHECK(file.shape("layer.weight") == deq::Shape{1, 2});
  CHECK(file.shape("empty") == deq::Shape{3, 0});
  CHECK(file.shape("scalar") == deq::Shape{});
  CHECK(file.dtype("layer.weight") == deq::Dtype::f32);
  CHECK(file.dtype("b") == deq::Dtype::i64);
  CHECK(file.metadata() ==
        std::map<std::string, std::string>{{"format", "pt"}, {"who", "h\xC3\xA9"}});

  CHECK(file.read<float>("layer.weight") == std::vector<float>{1.5f, -2.0f});
  CHECK(file.read<double>("layer.weight") == std::vector<double>{1.5, -2.0});
  CHECK(file.read<std::int64_t>("b") == std::vector<std::int64_t>{258, -1});
  CHECK(file.read<std::int16_t>("b") == std::vector<std::int16_t>{258, -1});
  CHECK(file.read<float>("b") == std::vector<float>{258.0f, -1.0f});
  CHECK(file.read<float>("empty").empty());
  CHECK(file.read<int>("scalar") == std::vector<int>{200});

  SUBCASE("into memory that is there already") {
    std::vector<double> out(2);
    file.read_into<double>("b", out);
    CHECK(out == std::vector<double>{258, -1});
    out.resize(3);
    const std::string text =
        message_of<deq::ShapeError>([&] { file.read_into<double>("layer.weight", out); });
    CHECK(text.find("\"layer.weight\" has shape (1, 2), 2 elements, but room for 3") !=
          std::string::npos);
  }
  SUBCASE("a name that is not there") {
    for (const auto& ask : std::initializer_list<void (*)(const deq::SafetensorsFile&)>{
             [](const deq::SafetensorsFile& f) { (void)f.shape("c"); },
             [](const deq::SafetensorsFile& f) { (void)f.dtype("c"); },
             [](const deq::SafetensorsFile& f) { (void)f.read<float>("c"); }}) {
      const std::string text = message_of<deq::InvalidArgument>([&] { ask(file); });
      CHECK(text.find("hand.safetensors has no tensor \"c\"") != std::string::npos);
    }
  }
  SUBCASE("an integer that does not fit") {
    CHECK(message_of<deq::FormatError>([&] {
            (void)file.read<std::uint8_t>("b");
          }).find("\"b\" has 258 at element 0, which does not fit U8") != std::string::npos);
    CHECK(message_of<deq::FormatError>([&] {
            (void)file.read<std::uint64_t>("b");
          }).find("\"b\" has -1 at element 1, which does not fit U64") != std::string::npos);
    CHECK(message_of<deq::FormatError>([&] {
            (void)file.read<std::int8_t>("scalar");
          }).find("\"scalar\" has 200 at element 0, which does not fit I8") != std::string::npos);
  }
  SUBCASE("floating-point data as integers") {
    const std::string text =
        message_of<deq::FormatError>([&] { (void)file.read<int>("layer.weight"); });
    CHECK(text.find("\"layer.weight\" has floating-point elements (F32)") != std::string::npos);
  }
  SUBCASE("a file that became shorter after it was opened") {
    fs::resize_file(directory / "hand.safetensors", 8 + header.size() + 4);
    const std::string text =
        message_of<deq::IoError>([&] { (void)file.read<float>("layer.weight"); });
    CHECK(text.find("got 4 of 8 bytes") != std::string::npos);
  }
}

TEST_CASE("safetensors: every dtype is decoded") {
  const TemporaryDirectory directory;
  const auto read = [&](std::string_view dtype, const std::string& data, std::size_t count) {
    const std::string header = deq::message(R"({"x":{"dtype":")", dtype, R"(","shape":[)", count,
                                            R"(],"data_offsets":[0,)", data.size(), "]}}");
    write_text(directory / "x", file_bytes(header, data));
    const auto file = deq::SafetensorsFile::open(directory / "x");
    CHECK(name(file.dtype("x")) == dtype);
    return file.read<double>("x");
  };
  using Values = std::vector<double>;
  CHECK(read("F64", "\x9A\x99\x99\x99\x99\x99\xB9\x3F"s, 1) == Values{0.1});
  CHECK(read("F32", "\xCD\xCC\xCC\x3D"s, 1) == Values{static_cast<double>(0.1f)});
  // 1, -2, 65504 (the largest), 2^-14 (the smallest normal), 2^-24 (the smallest), 0.333251953125
  CHECK(read("F16", "\x00\x3C\x00\xC0\xFF\x7B\x00\x04\x01\x00\x55\x35"s, 6) ==
        Values{1, -2, 65504, 0x1p-14, 0x1p-24, 0.333251953125});
  const Values special = read("F16", "\x00\x7C\x00\xFC\x01\x7E\x00\x80"s, 4);
  CHECK(special[0] == std::numeric_limits<double>::infinity());
  CHECK(special[1] == -std::numeric_limits<double>::infinity());
  CHECK(std::isnan(special[2]));
  CHECK((special[3] == 0 && std::signbit(special[3])));
  CHECK(read("BF16", "\x80\x3F\x49\xC0"s, 2) == Values{1, -3.140625});
  CHECK(read("I64", "\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF"s, 1) == Values{-2});
  CHECK(read("I32", "\x00\x00\x00\x80"s, 1) == Values{-2147483648.0});
  CHECK(read("I16", "\x34\x12\xFF\xFF"s, 2) == Values{0x1234, -1});
  CHECK(read("I8", "\x80\x7F"s, 2) == Values{-128, 127});
  CHECK(read("U64", "\x00\x00\x00\x00\x00\x00\x00\x80"s, 1) == Values{0x1p63});
  CHECK(read("U32", "\xFF\xFF\xFF\xFF"s, 1) == Values{4294967295.0});
  CHECK(read("U16", "\xFF\xFF"s, 1) == Values{65535});
  CHECK(read("U8", "\x00\xFF"s, 2) == Values{0, 255});
  CHECK(read("BOOL", "\x00\x01"s, 2) == Values{0, 1});
  CHECK(message_of<deq::FormatError>([&] {
          read("BOOL", "\x02"s, 1);
        }).find("\"x\" is BOOL and has bytes other than 0 and 1") != std::string::npos);
}

TEST_CASE("safetensors: a file that breaks a rule is rejected") {
  SUBCASE("too short for the length") { check_rejected("1234567", {"7 bytes are too few"}); }
  SUBCASE("empty") { check_rejected("", {"0 bytes are too few"}); }
  SUBCASE("header beyond the end of the file") {
    check_rejected(length_prefix(3) + "{}", {"header length 3, but only 2 bytes follow"});
  }
  SUBCASE("header above the limit") {
    check_rejected(length_prefix(100'000'001) + "{}", {"100000001 is above the limit"});
    check_rejected(length_prefix(~std::uint64_t{0}) + "{}", {"above the limit"});
  }
  SUBCASE("header that does not begin with a brace") {
    check_rejected(file_bytes(" {}", ""), {"does not begin with '{'"});
    check_rejected(file_bytes("", ""), {"does not begin with '{'"});
    check_rejected(file_bytes("[]", ""), {"does not begin with '{'"});
  }
  SUBCASE("header that is not JSON") {
    check_rejected(file_bytes("{\"w\":", ""), {"header: invalid JSON at byte 5"});
  }
  SUBCASE("header that is not UTF-8") {
    check_rejected(file_bytes("{\"\xC3\":{}}", ""), {"header", "not valid UTF-8"});
  }
  SUBCASE("a name twice") {
    check_rejected(file_bytes(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                              "ab"),
                   {"duplicate name \"w\""});
  }
  SUBCASE("a tensor that is no object") {
    check_rejected(file_bytes(R"({"w":[]})", ""), {"tensor \"w\"", "is not a JSON object"});
  }
  SUBCASE("missing fields") {
    check_rejected(one_tensor(R"("shape":[2],"data_offsets":[0,8])"), {"\"w\"", "no \"dtype\""});
    check_rejected(one_tensor(R"("dtype":"F32","data_offsets":[0,8])"), {"\"w\"", "no \"shape\""});
    check_rejected(one_tensor(R"("dtype":"F32","shape":[2])"), {"\"w\"", "no \"data_offsets\""});
  }
  SUBCASE("fields of a wrong type") {
    check_rejected(one_tensor(R"("dtype":4,"shape":[2],"data_offsets":[0,8])"),
                   {"\"w\"", "\"dtype\" that is not a string"});
    check_rejected(one_tensor(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"),
                   {"\"w\"", "\"shape\" that is not an array"});
    check_rejected(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":"0")"),
                   {"\"w\"", "\"data_offsets\" that is not an array"});
    check_rejected(one_tensor(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"),
                   {"\"w\"", "\"shape\"", "no number"});
    check_rejected(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,null])"),
                   {"\"w\"", "\"data_offsets\"", "no number"});
  }
  SUBCASE("numbers that are no sizes") {
    for (const std::string_view bad :
         {"-2", "2.0", "2e0", "-0", "9223372036854775808", "99999999999999999999999"}) {
      check_rejected(
          one_tensor(deq::message(R"("dtype":"F32","shape":[)", bad, R"(],"data_offsets":[0,8])")),
          {"\"w\"", "\"shape\"", bad});
      check_rejected(
          one_tensor(deq::message(R"("dtype":"F32","shape":[2],"data_offsets":[)", bad, ",8]")),
          {"\"w\"", "\"data_offsets\"", bad});
    }
  }
  SUBCASE("unknown dtype") {
    check_rejected(one_tensor(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"),
                   {"\"w\"", "F8_E4M3"});
    check_rejected(one_tensor(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])"),
                   {"\"w\"", "f32"});
  }
  SUBCASE("rank above the limit") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,2],"data_offsets":[0,8])"),
                   {"\"w\"", "rank 7"});
  }
  SUBCASE("not two offsets") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8])"),
                   {"\"w\"", "1 data_offsets"});
    check_rejected(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4,8])"),
                   {"\"w\"", "3 data_offsets"});
  }
  SUBCASE("offsets that end before they begin") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
                   {"\"w\"", "[8, 0], which end before they begin"});
  }
  SUBCASE("size that does not fit shape and dtype") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
                   {"\"w\"", "8 bytes", "(3)", "F32 need 12"});
    check_rejected(one_tensor(R"("dtype":"F64","shape":[2],"data_offsets":[0,8])"),
                   {"\"w\"", "F64 need 16"});
  }
  SUBCASE("shape that overflows") {
    // 2^62 x 4 elements are 0 modulo 2^64, 2^61 F64 are 2^64 bytes.
    check_rejected(
        one_tensor(R"("dtype":"U8","shape":[4611686018427387904,4],"data_offsets":[0,0])"),
        {"\"w\"", "2^63 bytes or more"});
    check_rejected(
        one_tensor(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])"),
        {"\"w\"", "2^63 bytes or more"});
    check_rejected(
        one_tensor(R"("dtype":"U8","shape":[0,4611686018427387904,4],"data_offsets":[0,0])"),
        {"\"w\"", "2^63 bytes or more"});
  }
  SUBCASE("overlap") {
    check_rejected(file_bytes(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                              R"("w":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}})",
                              "01234"),
                   {"\"w\"", "begins at data byte 2", "ends at 3"});
  }
  SUBCASE("the same bytes twice") {
    check_rejected(file_bytes(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                              R"("w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
                              "012"),
                   {"\"w\"", "begins at data byte 0"});
  }
  SUBCASE("a hole between tensors") {
    check_rejected(file_bytes(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("w":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}})",
                              "01234"),
                   {"\"w\"", "begins at data byte 2, 1 bytes after"});
  }
  SUBCASE("a hole before the first tensor") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"),
                   {"\"w\"", "begins at data byte 4, 4 bytes after"});
  }
  SUBCASE("bytes after the last tensor") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"),
                   {"last 4 bytes belong to no tensor"});
    check_rejected(file_bytes("{}", "x"), {"last 1 bytes belong to no tensor"});
  }
  SUBCASE("truncated data") {
    check_rejected(one_tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16])"),
                   {"\"w\"", "ends at data byte 16", "8 bytes of data"});
  }
  SUBCASE("metadata that are not strings") {
    check_rejected(file_bytes(R"({"__metadata__":[]})", ""), {"__metadata__ is not an object"});
    check_rejected(file_bytes(R"({"__metadata__":{"epoch":3}})", ""),
                   {"__metadata__", "\"epoch\" is not a string"});
  }
}

TEST_CASE("safetensors: a file that cannot be read") {
  const TemporaryDirectory directory;
  const std::string missing = message_of<deq::IoError>(
      [&] { deq::SafetensorsFile::open(directory / "missing.safetensors"); });
  CHECK(missing.find("missing.safetensors: No such file") != std::string::npos);
  const std::string is_directory =
      message_of<deq::IoError>([&] { deq::SafetensorsFile::open(directory.path()); });
  CHECK(is_directory.find("Is a directory") != std::string::npos);
}

TEST_CASE("safetensors: the writer's exact bytes") {
  const TemporaryDirectory directory;
  deq::SafetensorsWriter writer;
  const std::vector<std::uint8_t> bytes{7, 8, 9};
  const std::vector<float> floats{1.0f, -2.0f};
  writer.add<std::uint8_t>("odd", {3}, bytes);
  writer.add<float>("f", {2, 1}, floats);
  writer.metadata("format", "pt");
  writer.write(directory / "w.safetensors");

  // "odd" was added first, but would leave "f" unaligned.
  const std::string header = R"({"__metadata__":{"format":"pt"},)"
                             R"("f":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                             R"("odd":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  CHECK(padded.size() % 8 == 0);
  CHECK(read_text(directory / "w.safetensors") ==
        file_bytes(padded, "\x00\x00\x80\x3F\x00\x00\x00\xC0\x07\x08\x09"s));
  CHECK(directory.files() == std::vector<std::string>{"w.safetensors"});
}

TEST_CASE("safetensors: an empty file can be written and read") {
  const TemporaryDirectory directory;
  deq::SafetensorsWriter().write(directory / "empty");
  CHECK(read_text(directory / "empty") == file_bytes("{}      ", ""));
  const auto file = deq::SafetensorsFile::open(directory / "empty");
  CHECK(file.names().empty());
  CHECK(file.metadata().empty());
}

TEST_CASE_TEMPLATE("safetensors: round trip", T, float, double, std::int64_t, std::int32_t,
                   std::int16_t, std::int8_t, std::uint64_t, std::uint32_t, std::uint16_t,
                   std::uint8_t) {
  const TemporaryDirectory directory;
  using Limits = std::numeric_limits<T>;
  const std::vector<T> values{T{0}, T{1}, Limits::lowest(), Limits::max(), Limits::min(), T{42}};
  deq::SafetensorsWriter writer;
  writer.add<T>("a \"quoted\"\n\xC3\xA9 name", {2, 3}, values);
  writer.add<T>("", {}, std::span(values).last(1));
  writer.metadata("key\t", "value \\ \"");
  writer.write(directory / "t");

  const auto file = deq::SafetensorsFile::open(directory / "t");
  CHECK(file.names() == std::vector<std::string>{"a \"quoted\"\n\xC3\xA9 name", ""});
  CHECK(file.shape("a \"quoted\"\n\xC3\xA9 name") == deq::Shape{2, 3});
  CHECK(file.dtype("") == deq::dtype_of<T>());
  CHECK(deq::element_size(file.dtype("")) == sizeof(T));
  CHECK(file.read<T>("a \"quoted\"\n\xC3\xA9 name") == values);
  CHECK(file.read<T>("") == std::vector<T>{T{42}});
  CHECK(file.metadata() == std::map<std::string, std::string>{{"key\t", "value \\ \""}});
}

TEST_CASE("safetensors: conversions round as a cast does") {
  const TemporaryDirectory directory;
  const std::vector<double> doubles{0.1, 1e300, -1e300, 1e-300};
  const bool flags[] = {true, false};
  deq::SafetensorsWriter writer;
  writer.add<double>("d", {4}, doubles);
  writer.add<bool>("flags", {2}, flags);
  writer.write(directory / "t");
  const auto file = deq::SafetensorsFile::open(directory / "t");
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(file.read<float>("d") == std::vector<float>{0.1f, infinity, -infinity, 0.0f});
  CHECK(file.dtype("flags") == deq::Dtype::boolean);
  CHECK(file.read<int>("flags") == std::vector<int>{1, 0});
}

TEST_CASE("safetensors: what the writer refuses") {
  const TemporaryDirectory directory;
  deq::SafetensorsWriter writer;
  const std::vector<float> values{1, 2, 3};
  writer.add<float>("w", {3}, values);
  CHECK(message_of<deq::InvalidArgument>([&] {
          writer.add<float>("w", {3}, values);
        }).find("\"w\" is taken") != std::string::npos);
  CHECK(message_of<deq::InvalidArgument>([&] {
          writer.add<float>("__metadata__", {3}, values);
        }).find("\"__metadata__\" is taken") != std::string::npos);
  CHECK(message_of<deq::ShapeError>([&] {
          writer.add<float>("v", {2, 2}, values);
        }).find("\"v\" of shape (2, 2) needs 4 values, got 3") != std::string::npos);
  CHECK_THROWS_AS(writer.add<float>("\xFF", {3}, values), deq::InvalidArgument);
  CHECK_THROWS_AS(writer.metadata("k", "\xFF"), deq::InvalidArgument);
  auto many = writer;  // what it wrote could not be read again
  for (int i = 0; i < 1 << 20; ++i) many.metadata(std::to_string(i), "");
  CHECK(message_of<deq::InvalidArgument>([&] {
          many.write(directory / "many");
        }).find("values, more than the 1048576") != std::string::npos);
  writer.write(directory / "t");
  CHECK(deq::SafetensorsFile::open(directory / "t").names() == std::vector<std::string>{"w"});
}

TEST_CASE("atomic file: content of any size replaces the old file") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "file";
  write_text(path, "old");
  SUBCASE("bytes") {
    const std::string text = "new\0text"s;
    deq::write_file_atomically(path, std::as_bytes(std::span(text)));
    CHECK(read_text(path) == text);
  }
  SUBCASE("nothing") {
    deq::write_file_atomically(path, std::span<const std::byte>());
    CHECK(read_text(path).empty());
  }
  SUBCASE("a stream, across its buffer") {
    std::string expected;
    deq::write_file_atomically(path, [&](std::ostream& out) {
      for (int i = 0; i < 20000; ++i) {
        out << i << ',' << 0.5 << '\n';
        expected += std::to_string(i) + ",0.5\n";
      }
      const std::string large(200000, 'x');
      out << large << 'y';
      expected += large + 'y';
    });
    CHECK(read_text(path) == expected);
  }
  CHECK(directory.files() == std::vector<std::string>{"file"});
}

TEST_CASE("atomic file: after a failure the old file stays and nothing is left behind") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "file";
  write_text(path, "old");
  SUBCASE("the callback throws") {
    CHECK_THROWS_AS(deq::write_file_atomically(path,
                                               [](std::ostream& out) {
                                                 out << "half of it" << std::flush;
                                                 throw std::logic_error("stop");
                                               }),
                    std::logic_error);
  }
  SUBCASE("the stream fails") {
    const std::string text = message_of<deq::IoError>([&] {
      deq::write_file_atomically(path, [](std::ostream& out) { out.setstate(std::ios::badbit); });
    });
    CHECK(text.find("cannot write " + path.string()) != std::string::npos);
  }
  SUBCASE("the target is a directory") {
    fs::create_directory(directory / "sub");
    const std::string text = message_of<deq::IoError>(
        [&] { deq::write_file_atomically(directory / "sub", std::span<const std::byte>()); });
    CHECK(text.find("sub: could not rename to it: Is a directory") != std::string::npos);
    fs::remove(directory / "sub");
  }
  SUBCASE("there is no such directory") {
    const std::string text = message_of<deq::IoError>(
        [&] { deq::write_file_atomically(directory / "none/file", std::span<const std::byte>()); });
    CHECK(text.find("none/file: could not create") != std::string::npos);
    CHECK(text.find("No such file or directory") != std::string::npos);
  }
  CHECK(read_text(path) == "old");
  CHECK(directory.files() == std::vector<std::string>{"file"});
}

TEST_CASE("atomic file: a write that fails says why" * doctest::skip(!fs::exists("/dev/full"))) {
  const int full = ::open("/dev/full", O_WRONLY);
  REQUIRE(full >= 0);
  deq::detail::DescriptorBuffer buffer(full);
  std::ostream out(&buffer);
  out << "text" << std::flush;
  ::close(full);
  CHECK(out.bad());
  CHECK(buffer.error() == ENOSPC);
}
