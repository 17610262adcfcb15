// Prints how long RmsNorm takes as a multiple of memcpy of the same bytes, and
// of the floor (floor.h).
//
// Absolute times of a shared machine drift; the ratio of two neighbouring
// measurements does not. Every round times the kernel and memcpy back to back,
// single-threaded memcpy as the common measure for any number of threads, and
// the median of the rounds' ratios is printed. The floor is single-threaded,
// too, has no streaming stores, and is that of rms_norm: with add_rms_norm it
// is not printed.
//
// All buffers start at multiples of 4096 bytes: on Zen 3 memcpy takes up to 17
// times longer when (destination - source) mod 4096 is between 1 and 48, and
// where an arena would put them depends on the shape.
//
//   rms_norm_ratio [--op=rms_norm|add_rms_norm] [--type=f32|f16|bf16]
//                  [--threads=N] [--rounds=N] [--consumer] [--between=MIB]
//                  [--outlier]
//                  [ROWSxHIDDEN ...]
//
// For add_rms_norm "the same bytes" are two copies: two matrices are read and
// two written. --consumer adds a pass that reads the output to both sides.
// --between passes so much other data through the caches before each call and
// then writes x anew; that is not timed. --outlier sets one element of every
// row to 1e4, so that each is summed in float64. The kernel variant is chosen
// by AI_EDGE_RMS_NORM_VARIANT as everywhere else.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/floor.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rms_norm/thread_pool.h"

namespace {

using ai_edge_rms_norm::ElementType;

struct Shape {
  std::size_t rows;
  std::size_t hidden_size;
};

struct Options {
  bool add = false;
  bool consumer = false;
  bool outlier = false;
  ElementType type = ElementType::kFloat32;
  int threads = 1;
  int rounds = 0;   // 0: as many as fit into half a second, at least 15
  int between = 0;  // MiB
  std::vector<Shape> shapes;
};

constexpr Shape kShapes[] = {
    {1, 640},   {1, 1152},   {1, 2048},   {1, 4096},    {4, 256},    {16, 2048},
    {128, 640}, {128, 2304}, {512, 4096}, {1024, 1152}, {2048, 8192}};

[[noreturn]] void Usage(const char* argument) {
  std::fprintf(stderr,
               "rms_norm_ratio: bad argument \"%s\"; expected --op=rms_norm|"
               "add_rms_norm, --type=f32|f16|bf16, --threads=N, --rounds=N, "
               "--consumer, --between=MIB, --outlier or ROWSxHIDDEN\n",
               argument);
  std::exit(2);
}

// Whether the text is a positive number that fits, and nothing else.
template <typename T>
bool ParsePositive(const char* begin, const char* end, T* value) {
  const auto [stop, error] = std::from_chars(begin, end, *value);
  return error == std::errc() && stop == end && *value > 0;
}

// Whether the text is ROWSxHIDDEN_SIZE.
bool ParseShape(const std::string& text, Shape* shape) {
  const std::size_t x = text.find('x');
  if (x == std::string::npos) return false;
  const char* begin = text.data();
  const char* end = begin + text.size();
  return ParsePositive(begin, begin + x, &shape->rows) &&
         ParsePositive(begin + x + 1, end, &shape->hidden_size);
}

// Whether argument is the name and a number, which has to be positive.
bool ParseNumber(const std::string& argument, const std::string& name,
                 int* value) {
  if (argument.compare(0, name.size(), name) != 0) return false;
  const char* begin = argument.data();
  if (!ParsePositive(begin + name.size(), begin + argument.size(), value)) {
    Usage(argument.c_str());
  }
  return true;
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    Shape shape;
    if (argument == "--op=rms_norm") {
      options.add = false;
    } else if (argument == "--op=add_rms_norm") {
      options.add = true;
    } else if (argument == "--type=f32") {
      options.type = ElementType::kFloat32;
    } else if (argument == "--type=f16") {
      options.type = ElementType::kFloat16;
    } else if (argument == "--type=bf16") {
      options.type = ElementType::kBFloat16;
    } else if (argument == "--consumer") {
      options.consumer = true;
    } else if (argument == "--outlier") {
      options.outlier = true;
    } else if (ParseNumber(argument, "--threads=", &options.threads) ||
               ParseNumber(argument, "--rounds=", &options.rounds) ||
               ParseNumber(argument, "--between=", &options.between)) {
    } else if (ParseShape(argument, &shape)) {
      options.shapes.push_back(shape);
    } else {
      Usage(argv[i]);
    }
  }
  if (options.shapes.empty()) {
    options.shapes.assign(std::begin(kShapes), std::end(kShapes));
  }
  return options;
}

double Median(std::vector<double> values) {
  const auto middle =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Seconds per call of f, called n times.
template <class F>
double Time(std::size_t n, const F& f) {
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < n; ++i) {
    f();
    __asm__ __volatile__("" ::: "memory");
  }
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - start;
  return elapsed.count() / static_cast<double>(n);
}

// The same where something not timed comes before each call.
template <class Between, class F>
double Time(std::size_t n, const Between& between, const F& f) {
  double seconds = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    between();
    seconds += Time(1, f);
  }
  return seconds / static_cast<double>(n);
}

// Buffers at multiples of a page.
class Arena {
 public:
  explicit Arena(std::size_t bytes)
      : memory_(static_cast<char*>(std::aligned_alloc(kPage, Round(bytes)))),
        next_(memory_) {
    std::memset(memory_, 0, Round(bytes));
  }
  ~Arena() { std::free(memory_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  char* Allocate(std::size_t bytes) {
    char* result = next_;
    next_ += Round(bytes);
    return result;
  }
  static std::size_t Round(std::size_t bytes) {
    return (bytes + kPage - 1) / kPage * kPage;
  }

 private:
  static constexpr std::size_t kPage = 4096;
  char* memory_;
  char* next_;
};

// Normal values; every `period`-th is an outlier unless period is 0.
void Fill(ElementType type, char* data, std::size_t count, std::size_t period,
          std::mt19937* rng) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < count; ++i) {
    const bool is_outlier = period > 0 && i % period == period / 3;
    const float value = is_outlier ? 1e4f : normal(*rng);
    switch (type) {
      case ElementType::kFloat32:
        reinterpret_cast<float*>(data)[i] = value;
        break;
      case ElementType::kFloat16:
        reinterpret_cast<ai_edge_rms_norm::Float16*>(data)[i] =
            ai_edge_rms_norm::FromFloat<ai_edge_rms_norm::Float16>(value);
        break;
      case ElementType::kBFloat16:
        reinterpret_cast<ai_edge_rms_norm::BFloat16*>(data)[i] =
            ai_edge_rms_norm::FromFloat<ai_edge_rms_norm::BFloat16>(value);
        break;
    }
  }
}

std::uint64_t Consume(const char* data, std::size_t bytes) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
    std::uint64_t value;
    std::memcpy(&value, data + i, 8);
    sum += value;
  }
  return sum;
}

void Measure(const Options& options, Shape shape,
             ai_edge_rms_norm::ThreadPool* pool) {
  const std::size_t element = SizeOf(options.type);
  const std::size_t count = shape.rows * shape.hidden_size;
  const std::size_t bytes = count * element;
  Arena arena(4 * Arena::Round(bytes) + Arena::Round(4 * shape.hidden_size));
  char* x = arena.Allocate(bytes);
  char* residual = arena.Allocate(options.add ? bytes : 0);
  char* weight = arena.Allocate(4 * shape.hidden_size);
  char* sum = arena.Allocate(options.add ? bytes : 0);
  char* y = arena.Allocate(bytes);
  std::mt19937 rng(1);
  Fill(options.type, x, count, options.outlier ? shape.hidden_size : 0, &rng);
  if (options.add) Fill(options.type, residual, count, 0, &rng);
  Fill(ElementType::kFloat32, weight, shape.hidden_size, 0, &rng);

  ai_edge_rms_norm::RmsNormParams params;
  params.rows = shape.rows;
  params.hidden_size = shape.hidden_size;
  params.epsilon = 1e-6;
  params.type = options.type;
  volatile std::uint64_t sink = 0;
  const auto consume = [&] {
    if (options.consumer) sink = sink + Consume(y, bytes);
  };
  const auto kernel = [&] {
    if (options.add) {
      ai_edge_rms_norm::AddRmsNorm(params, x, residual, weight, sum, y, pool);
    } else {
      ai_edge_rms_norm::RmsNorm(params, x, weight, y, pool);
    }
    consume();
  };
  const auto copy = [&] {
    if (options.add) std::memcpy(sum, residual, bytes);
    std::memcpy(y, x, bytes);
    consume();
  };

  const auto floor = [&] {
    ai_edge_rms_norm::Floor(x, weight, y, shape.rows,
                            shape.hidden_size * element, shape.hidden_size * 4);
    consume();
  };

  // As the operators of a model do between two norms: pass other data through
  // the caches and write the next x.
  const std::vector<char> other(static_cast<std::size_t>(options.between) << 20,
                                1);
  const std::vector<char> next_x(x, x + (options.between > 0 ? bytes : 0));
  const auto between = [&] {
    sink = sink + Consume(other.data(), other.size());
    std::copy(next_x.begin(), next_x.end(), x);
  };
  const auto time = [&](std::size_t calls, const auto& f) {
    return options.between > 0 ? Time(calls, between, f) : Time(calls, f);
  };

  // Long enough for the clock and for what one call leaves in the caches to be
  // what the next one finds. With threads, long enough for the pool to expect
  // more jobs, and for a second CPU to wake up, too.
  const double seconds_per_measurement =
      pool->num_threads() > 1 ? 10e-3 : 200e-6;
  Time(3, copy);
  const double estimate = Time(3, copy);
  const auto calls = static_cast<std::size_t>(
      std::max(1.0, seconds_per_measurement / estimate));
  const std::size_t warm_up_calls =
      pool->num_threads() > 1 ? calls / 2 + 8 : calls / 8 + 1;
  const int rounds =
      options.rounds > 0
          ? options.rounds
          : std::max(15, static_cast<int>(
                             0.2 / (estimate * static_cast<double>(calls))));
  const bool has_floor = !options.add && ai_edge_rms_norm::HasFloor();
  std::vector<double> kernel_times, copy_times, floor_times, ratios,
      floor_ratios;
  for (int round = 0; round < rounds; ++round) {
    time(warm_up_calls, kernel);
    kernel_times.push_back(time(calls, kernel));
    time(calls / 8 + 1, copy);
    copy_times.push_back(time(calls, copy));
    ratios.push_back(kernel_times.back() / copy_times.back());
    if (has_floor) {
      time(calls / 8 + 1, floor);
      floor_times.push_back(time(calls, floor));
      floor_ratios.push_back(kernel_times.back() / floor_times.back());
    }
  }
  std::sort(ratios.begin(), ratios.end());
  const std::string name =
      std::to_string(shape.rows) + "x" + std::to_string(shape.hidden_size);
  std::printf("%-10s %10.3f us  memcpy %10.3f us  ratio %5.2f  (%.2f-%.2f)",
              name.c_str(), Median(kernel_times) * 1e6,
              Median(copy_times) * 1e6, ratios[ratios.size() / 2],
              ratios[ratios.size() / 4], ratios[ratios.size() * 3 / 4]);
  if (has_floor) {
    std::sort(floor_ratios.begin(), floor_ratios.end());
    std::printf("  floor %10.3f us  ratio %5.2f  (%.2f-%.2f)",
                Median(floor_times) * 1e6,
                floor_ratios[floor_ratios.size() / 2],
                floor_ratios[floor_ratios.size() / 4],
                floor_ratios[floor_ratios.size() * 3 / 4]);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  ai_edge_rms_norm::ThreadPool pool(options.threads);
  std::printf("variant %s, %d thread%s; median ratio (quartiles)\n",
              ai_edge_rms_norm::RmsNormVariant(), pool.num_threads(),
              pool.num_threads() == 1 ? "" : "s");
  for (const Shape& shape : options.shapes) Measure(options, shape, &pool);
}
