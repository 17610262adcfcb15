#include "kernels/tflite/rms_norm_pattern.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/rms_norm/element_types.h"
#include "kernels/tflite/canonical_graph.h"
#include "kernels/tflite/rms_norm_node.h"

namespace ai_edge_rms_norm {
namespace {

constexpr int kNone = -1;

// No RMSNorm has as many nodes; a bound on the time for each of them.
constexpr std::size_t kMaxNodes = 64;
// How many casts and reshapes are followed back from x or a weight.
constexpr int kMaxVersions = 8;

enum class Role : unsigned char {
  kNone,
  kSquare,
  kSumSquare,
  kRootSumSquare,
  kMeanSquare,
  kShifted,
  kInverseShifted,
  kRms,
  kInverseRms,
  kScaledX,
  kNorm,
  kAbs,
  kMaxAbs,
  kRowScale,
  kInverseRowScale,
  kRangeScaledX,
  kShiftRoot,
  kScaledShift,
};

// Whether the tensor holds one number for each row.
bool IsRowStatistic(Role role) {
  switch (role) {
    case Role::kNone:
    case Role::kSquare:
    case Role::kScaledX:
    case Role::kNorm:
    case Role::kAbs:
    case Role::kRangeScaledX:
      return false;
    default:
      return true;
  }
}

struct Meaning {
  Role role = Role::kNone;
  // Whether a row statistic has the shape of x instead of 1 as last dimension.
  bool wide = false;
  // Tensors whose meanings it is made of.
  std::array<int, 3> parts = {kNone, kNone, kNone};
  // Tensors that are x, up to casts; for SCALED_X, x and the weight.
  std::array<int, 2> factors = {kNone, kNone};
  int rows = kNone;       // A tensor of the shape of x.
  int weight = kNone;     // The operand, or none.
  int row_scale = kNone;  // The first tensor of this role, or none.
  int c = kNone;          // The constant of ROW_SCALE, or epsilon.
  int root = kNone;       // The position of the node that computes the root.
  double epsilon = 0.0;
};

bool IsPositive(const std::optional<double>& value) {
  return value.has_value() && std::isfinite(*value) && *value > 0.0;
}

// The shortest decimal that is this float32: 1e-6 for the one next to it.
double ShortestDecimal(float value) {
  for (int digits = 1; digits < 9; ++digits) {
    // In the locale of the process, which is the same for both.
    char text[32];
    std::snprintf(text, sizeof(text), "%.*g", digits, value);
    const double decimal = std::strtod(text, nullptr);
    if (static_cast<float>(decimal) == value) return decimal;
  }
  return value;
}

// The epsilon in "<anything><mark><epsilon>", a tensor's name.
std::optional<double> EpsilonOfName(const char* name, std::string_view mark) {
  constexpr std::size_t kMaxName = 4096;
  if (name == nullptr) return std::nullopt;
  const std::string text(name, strnlen(name, kMaxName));
  const std::size_t found = text.rfind(mark);
  if (text.size() == kMaxName || found == std::string::npos) {
    return std::nullopt;
  }
  std::istringstream stream(text.substr(found + mark.size()));
  stream.imbue(std::locale::classic());
  double epsilon = 0.0;
  if (!(stream >> std::noskipws >> epsilon) || stream.peek() != EOF) {
    return std::nullopt;
  }
  return epsilon;
}

class Matcher {
 public:
  explicit Matcher(const CanonicalGraph& graph)
      : graph_(graph), meanings_(graph.num_tensors()) {}

  std::vector<RmsNormMatch> Run();

 private:
  // A match by positions instead of indices.
  struct Candidate {
    RmsNormMatch match;
    std::set<int> nodes;
    std::set<int> preparations;
  };

  const Meaning& meaning(int tensor) const { return meanings_[tensor]; }
  Role role(int tensor) const { return meanings_[tensor].role; }
  bool SameSource(int a, int b) const {
    return graph_.Source(a) == graph_.Source(b);
  }
  int HiddenSize(const Meaning& m) const {
    return graph_.LastDimension(m.rows);
  }

  // Whether the statistic, in this tensor, broadcasts along the rows of x.
  bool IsRow(int tensor, const Meaning& m) const {
    return graph_.HasRowsOf(tensor, m.rows, m.wide ? HiddenSize(m) : 1);
  }

  // The same as the meaning of `part`, with another role.
  Meaning Then(int part, Role role) const;

  // The rules: the meaning of a node's output.
  Meaning Apply(const CanonicalNode& node) const;
  Meaning Cast(const CanonicalNode& node) const;
  Meaning Reshape(const CanonicalNode& node) const;
  Meaning Broadcast(const CanonicalNode& node) const;
  Meaning Abs(const CanonicalNode& node) const;
  Meaning Square(const CanonicalNode& node) const;
  Meaning Replace(const CanonicalNode& node, Role from, Role to) const;
  Meaning Root(const CanonicalNode& node, Role from, Role to) const;
  Meaning Sqrt(const CanonicalNode& node) const;
  Meaning Rsqrt(const CanonicalNode& node) const;
  Meaning Mean(const CanonicalNode& node) const;
  Meaning Sum(const CanonicalNode& node) const;
  Meaning Max(const CanonicalNode& node) const;
  Meaning Dot(const CanonicalNode& node) const;
  Meaning Reciprocal(const CanonicalNode& node) const;
  Meaning Add(const CanonicalNode& node) const;
  Meaning Maximum(const CanonicalNode& node) const;
  Meaning Div(const CanonicalNode& node) const;
  Meaning Mul(const CanonicalNode& node) const;
  // Of a times b, where the role of a decides.
  Meaning Times(const CanonicalNode& node, int a, int b) const;
  Meaning ScaledX(const CanonicalNode& node) const;

  // Of x or c divided by ROW_SCALE, in a tensor that is that or its inverse.
  Meaning OverRowScale(const CanonicalNode& node, int scale, int other) const;
  // Of an INVERSE_RMS (or an RMS to divide by) times x or a weight.
  Meaning TimesXOrWeight(int statistic, int other) const;
  Meaning TimesX(int statistic, int x) const;
  Meaning TimesWeight(int tensor, int weight, Role role) const;
  bool IsMeanFactor(double factor, const Meaning& m) const;

  // A tensor, and what it was reshaped from, if they have rows of this size.
  std::array<int, 2> WithRows(int tensor, int size) const;
  bool IsVectorOf(int tensor, int size) const;
  bool IsWeight(int tensor, int hidden_size) const;
  int StoredWeight(int tensor) const;
  bool IsOnes(int weight) const;

  double Epsilon(const Meaning& m) const;
  // Takes a NORM for a match if it is one.
  void Consider(const Meaning& m, int y);
  bool FindX(const Meaning& m, int y, Candidate* candidate) const;
  bool FindWeight(const Meaning& m, Candidate* candidate) const;
  bool HasKernel(int weight, int x) const;
  bool CollectNodes(int y, Candidate* candidate) const;
  void CollectPreparations(Candidate* candidate) const;
  bool IsClosed(const Candidate& candidate) const;
  bool IsReadInside(int tensor, const Candidate& candidate) const;
  bool IsPreparation(int tensor, const Candidate& candidate) const;

  const CanonicalGraph& graph_;
  std::vector<Meaning> meanings_;        // By tensor.
  std::map<int, Candidate> candidates_;  // By root; the longest of each.
  mutable std::map<int, bool> ones_;     // By tensor.
};

Meaning Matcher::Then(int part, Role role) const {
  Meaning result = meaning(part);
  result.role = role;
  result.parts = {part, kNone, kNone};
  return result;
}

Meaning Matcher::Apply(const CanonicalNode& node) const {
  using Rule = Meaning (Matcher::*)(const CanonicalNode&) const;
  static constexpr std::pair<Operator, Rule> kRules[] = {
      {Operator::kCast, &Matcher::Cast},
      {Operator::kReshape, &Matcher::Reshape},
      {Operator::kOnes, &Matcher::Reshape},
      {Operator::kIdentity, &Matcher::Cast},
      {Operator::kBroadcast, &Matcher::Broadcast},
      {Operator::kAbs, &Matcher::Abs},
      {Operator::kSquare, &Matcher::Square},
      {Operator::kSqrt, &Matcher::Sqrt},
      {Operator::kRsqrt, &Matcher::Rsqrt},
      {Operator::kReciprocal, &Matcher::Reciprocal},
      {Operator::kMean, &Matcher::Mean},
      {Operator::kSum, &Matcher::Sum},
      {Operator::kMax, &Matcher::Max},
      {Operator::kDot, &Matcher::Dot},
      {Operator::kAdd, &Matcher::Add},
      {Operator::kMul, &Matcher::Mul},
      {Operator::kDiv, &Matcher::Div},
      {Operator::kMaximum, &Matcher::Maximum},
  };
  for (const auto& [op, rule] : kRules) {
    if (op == node.op) return (this->*rule)(node);
  }
  return {};
}

Meaning Matcher::Mean(const CanonicalNode& node) const {
  return Replace(node, Role::kSquare, Role::kMeanSquare);
}

Meaning Matcher::Sum(const CanonicalNode& node) const {
  return Replace(node, Role::kSquare, Role::kSumSquare);
}

Meaning Matcher::Max(const CanonicalNode& node) const {
  return Replace(node, Role::kAbs, Role::kMaxAbs);
}

// Of each row of x with itself, as matrices of one row and of one column.
Meaning Matcher::Dot(const CanonicalNode& node) const {
  const int size = graph_.VectorSize(node.a);
  const std::array<int, 2> others = WithRows(node.b, size);
  Meaning m;
  for (const int x : WithRows(node.a, size)) {
    if (x == kNone || (x != others[0] && x != others[1])) continue;
    m.role = Role::kSumSquare;
    m.factors = {x, x};
    m.rows = x;
  }
  return m;
}

std::array<int, 2> Matcher::WithRows(int tensor, int size) const {
  const auto or_none = [&](int index) {
    return index != kNone && graph_.LastDimension(index) == size ? index
                                                                 : kNone;
  };
  const int node = graph_.producer(tensor);
  const bool reshaped =
      node != kNone && (graph_.nodes()[node].op == Operator::kReshape ||
                        graph_.nodes()[node].op == Operator::kOnes);
  return {or_none(tensor), or_none(reshaped ? graph_.nodes()[node].a : kNone)};
}

Meaning Matcher::Rsqrt(const CanonicalNode& node) const {
  return Root(node, Role::kShifted, Role::kInverseRms);
}

Meaning Matcher::Cast(const CanonicalNode& node) const {
  const Meaning& m = meaning(node.a);
  return m.role == Role::kNone ? Meaning{} : Then(node.a, m.role);
}

Meaning Matcher::Reshape(const CanonicalNode& node) const {
  const Meaning& m = meaning(node.a);
  const bool keeps_rows = !m.wide || graph_.SameShape(node.a, node.output);
  return IsRowStatistic(m.role) && keeps_rows ? Then(node.a, m.role)
                                              : Meaning{};
}

Meaning Matcher::Broadcast(const CanonicalNode& node) const {
  const Meaning& m = meaning(node.a);
  const int last = graph_.LastDimension(node.output);
  if (!IsRowStatistic(m.role) || !IsRow(node.a, m) ||
      (last != HiddenSize(m) && (last != 1 || m.wide)) ||
      !graph_.HasRowsOf(node.output, m.rows, last)) {
    return {};
  }
  Meaning result = Then(node.a, m.role);
  result.wide = last == HiddenSize(m);
  return result;
}

Meaning Matcher::Abs(const CanonicalNode& node) const {
  Meaning m;
  m.role = Role::kAbs;
  m.factors = {node.a, node.a};
  m.rows = node.output;
  return m;
}

Meaning Matcher::Square(const CanonicalNode& node) const {
  const Meaning& m = meaning(node.a);
  if (m.role == Role::kRootSumSquare) {
    return Then(node.a, Role::kSumSquare);
  }
  // 1 / ROW_SCALE is c / ROW_SCALE if c is 1.
  if (m.role == Role::kShiftRoot ||
      (m.role == Role::kInverseRowScale && graph_.Scalar(m.c) == 1.0)) {
    return Then(node.a, Role::kScaledShift);
  }
  Meaning square;
  // A magnitude that nothing else reads, as in the norm of a vector.
  if (m.role == Role::kAbs && (node.b == kNone || node.b == node.a) &&
      !graph_.is_output(node.a) && graph_.consumers(node.a).size() == 1) {
    square = Then(node.a, Role::kSquare);
    square.rows = node.output;
    return square;
  }
  square.role = Role::kSquare;
  const bool product = node.b != kNone && SameSource(node.a, node.b);
  square.factors = {node.a, product ? node.b : node.a};
  square.rows = node.output;
  return square;
}

Meaning Matcher::Replace(const CanonicalNode& node, Role from, Role to) const {
  return role(node.a) == from ? Then(node.a, to) : Meaning{};
}

Meaning Matcher::Root(const CanonicalNode& node, Role from, Role to) const {
  Meaning m = Replace(node, from, to);
  m.root = graph_.producer(node.output);
  return m;
}

Meaning Matcher::Sqrt(const CanonicalNode& node) const {
  switch (role(node.a)) {
    case Role::kSumSquare:
      return Then(node.a, Role::kRootSumSquare);
    case Role::kInverseShifted:
      return Root(node, Role::kInverseShifted, Role::kInverseRms);
    default:
      return Root(node, Role::kShifted, Role::kRms);
  }
}

Meaning Matcher::Reciprocal(const CanonicalNode& node) const {
  // DIV(1, a) or POW(a, -1).
  const int a = graph_.Scalar(node.a) == 1.0 ? node.b : node.a;
  const Meaning& m = meaning(a);
  if (m.role == Role::kRms) return Then(a, Role::kInverseRms);
  if (m.role == Role::kShifted) return Then(a, Role::kInverseShifted);
  if (m.role == Role::kRowScale) {
    return Then(a, Role::kInverseRowScale);
  }
  return {};
}

Meaning Matcher::Add(const CanonicalNode& node) const {
  for (const auto& [a, b] : {std::pair(node.a, node.b), {node.b, node.a}}) {
    const Meaning& m = meaning(a);
    if (m.role != Role::kMeanSquare) continue;
    const std::optional<double> epsilon = graph_.Scalar(b);
    if (IsPositive(epsilon)) {
      Meaning shifted = Then(a, Role::kShifted);
      shifted.epsilon = *epsilon;
      shifted.c = b;
      return shifted;
    }
    const Meaning& shift = meaning(b);
    const Meaning& z = meaning(m.factors[0]);
    if (shift.role == Role::kScaledShift && z.role == Role::kRangeScaledX &&
        shift.row_scale == z.row_scale && shift.wide == m.wide &&
        graph_.SameShape(a, b)) {
      Meaning shifted = Then(a, Role::kShifted);
      shifted.parts[1] = b;
      shifted.row_scale = z.row_scale;
      return shifted;
    }
  }
  return {};
}

Meaning Matcher::Maximum(const CanonicalNode& node) const {
  for (const auto& [a, b] : {std::pair(node.a, node.b), {node.b, node.a}}) {
    if (role(a) != Role::kMaxAbs || !IsPositive(graph_.Scalar(b))) continue;
    Meaning m = Then(a, Role::kRowScale);
    m.row_scale = node.output;
    m.c = b;
    return m;
  }
  return {};
}

Meaning Matcher::OverRowScale(const CanonicalNode& node, int scale,
                              int other) const {
  const Meaning& m = meaning(scale);
  const std::optional<double> c = graph_.Scalar(other);
  if (c.has_value() && c == graph_.Scalar(m.c)) {
    return Then(scale, Role::kShiftRoot);
  }
  if (!IsRow(scale, m) || !SameSource(other, m.factors[0])) return {};
  Meaning z = Then(scale, Role::kRangeScaledX);
  z.factors[0] = other;
  z.rows = node.output;
  z.wide = false;
  return z;
}

// sum(x²) times this is mean(x²); the factor may have been rounded to float32.
bool Matcher::IsMeanFactor(double factor, const Meaning& m) const {
  const double expected = 1.0 / HiddenSize(m);
  return factor == expected ||
         static_cast<float>(factor) == static_cast<float>(expected);
}

Meaning Matcher::Div(const CanonicalNode& node) const {
  const Meaning& m = meaning(node.a);
  if (m.role == Role::kSumSquare) {
    const std::optional<double> divisor = graph_.Scalar(node.b);
    return divisor.has_value() && IsMeanFactor(1.0 / *divisor, m)
               ? Then(node.a, Role::kMeanSquare)
               : Meaning{};
  }
  if (role(node.b) == Role::kRms) {
    return TimesXOrWeight(node.b, node.a);
  }
  if (role(node.b) == Role::kRowScale) {
    return OverRowScale(node, node.b, node.a);
  }
  return {};
}

Meaning Matcher::Mul(const CanonicalNode& node) const {
  const Meaning m = Times(node, node.a, node.b);
  if (m.role != Role::kNone) return m;
  const Meaning other = Times(node, node.b, node.a);
  return other.role != Role::kNone ? other : ScaledX(node);
}

Meaning Matcher::Times(const CanonicalNode& node, int a, int b) const {
  const Meaning& m = meaning(a);
  switch (m.role) {
    case Role::kSumSquare: {
      const std::optional<double> factor = graph_.Scalar(b);
      return factor.has_value() && IsMeanFactor(*factor, m)
                 ? Then(a, Role::kMeanSquare)
                 : Meaning{};
    }
    case Role::kInverseRowScale:
      return OverRowScale(node, a, b);
    case Role::kInverseRms:
      return TimesXOrWeight(a, b);
    case Role::kNorm:
      return TimesWeight(a, b, Role::kNorm);
    default:
      return {};
  }
}

Meaning Matcher::TimesXOrWeight(int statistic, int other) const {
  if (!IsRow(statistic, meaning(statistic))) return {};
  const Meaning norm = TimesX(statistic, other);
  if (norm.role != Role::kNone) return norm;
  Meaning m = TimesWeight(statistic, other, Role::kInverseRms);
  if (m.role != Role::kNone) m.wide = true;
  return m;
}

Meaning Matcher::TimesX(int statistic, int x) const {
  const Meaning& m = meaning(statistic);
  const auto is_x = [&](int tensor) {
    return SameSource(tensor, m.factors[0]);
  };
  int scaled = kNone;
  int weight = m.weight;
  if (!is_x(x)) {
    const Meaning& product = meaning(x);
    if (product.role != Role::kScaledX || m.weight != kNone) return {};
    scaled = x;
    const int i = is_x(product.factors[0]) ? 0 : 1;
    x = product.factors[i];
    weight = product.factors[1 - i];
    if (!is_x(x) || !IsWeight(weight, HiddenSize(m))) return {};
    if (IsOnes(weight)) weight = kNone;
  }
  Meaning norm = Then(statistic, Role::kNorm);
  norm.parts[1] = scaled;
  norm.weight = weight;
  norm.wide = false;
  if (m.row_scale != kNone) {
    // x is RANGE_SCALED_X, which is a part of the norm; so is what it is of.
    if (role(x) != Role::kRangeScaledX) return {};
    norm.parts[2] = x;
    norm.factors = meaning(x).factors;
  }
  return norm;
}

Meaning Matcher::TimesWeight(int tensor, int weight, Role role) const {
  const Meaning& m = meaning(tensor);
  if (!IsWeight(weight, HiddenSize(m))) return {};
  Meaning result = Then(tensor, role);
  if (IsOnes(weight)) return result;
  if (m.weight != kNone) return {};
  result.weight = weight;
  return result;
}

Meaning Matcher::ScaledX(const CanonicalNode& node) const {
  if (!IsWeight(node.b, graph_.LastDimension(node.a)) &&
      !IsWeight(node.a, graph_.LastDimension(node.b))) {
    return {};
  }
  Meaning m;
  m.role = Role::kScaledX;
  m.factors = {node.a, node.b};
  m.rows = node.output;
  return m;
}

// Whether the shape is [size], which leading ones may precede.
bool Matcher::IsVectorOf(int index, int size) const {
  const TfLiteTensor& tensor = graph_.tensor(index);
  const TfLiteIntArray& dims = *tensor.dims;
  return graph_.IsFloat(index) && tensor.sparsity == nullptr &&
         !tensor.is_variable && dims.size > 0 && size > 0 &&
         graph_.LastDimension(index) == size &&
         std::all_of(dims.data, dims.data + dims.size - 1,
                     [](int dim) { return dim == 1; });
}

// The constant behind a weight's casts and broadcast, or -1.
int Matcher::StoredWeight(int tensor) const {
  const int node = graph_.producer(tensor);
  const bool broadcast =
      node != kNone && graph_.nodes()[node].op == Operator::kBroadcast;
  const int source = graph_.Source(broadcast ? graph_.nodes()[node].a : tensor);
  return graph_.IsStored(source) ? source : kNone;
}

bool Matcher::IsWeight(int tensor, int hidden_size) const {
  const int stored = StoredWeight(tensor);
  if (stored != kNone) {
    ElementType type;
    return IsVectorOf(stored, hidden_size) &&
           ToElementType(graph_.tensor(stored).type, &type) &&
           graph_.tensor(stored).bytes == hidden_size * SizeOf(type);
  }
  for (int i = 0; i < kMaxVersions && tensor != kNone; ++i) {
    if (graph_.tensor(tensor).dims->size == 1) {
      return IsVectorOf(tensor, hidden_size);
    }
    const int node = graph_.producer(tensor);
    const bool broadcast =
        node != kNone && graph_.nodes()[node].op == Operator::kBroadcast;
    tensor = broadcast ? graph_.nodes()[node].a : graph_.Before(tensor);
  }
  return false;
}

bool Matcher::IsOnes(int weight) const {
  const int stored = StoredWeight(weight);
  if (stored == kNone) return false;
  const auto [known, is_new] = ones_.emplace(stored, false);
  if (!is_new) return known->second;
  const TfLiteTensor& tensor = graph_.tensor(stored);
  ElementType type;
  if (!ToElementType(tensor.type, &type)) return false;
  const auto* data = static_cast<const uint8_t*>(tensor.data);
  bool ones = tensor.bytes > 0;
  for (std::size_t i = 0; ones && i < tensor.bytes; i += SizeOf(type)) {
    ones = WidenElement(data + i, type) == 1.0f;
  }
  return known->second = ones;
}

double Matcher::Epsilon(const Meaning& m) const {
  if (m.row_scale == kNone) {
    const float stored = static_cast<float>(m.epsilon);
    const std::optional<double> named =
        EpsilonOfName(graph_.tensor(graph_.Source(m.c)).name, "/epsilon=");
    return IsPositive(named) && static_cast<float>(*named) == stored
               ? *named
               : ShortestDecimal(stored);
  }
  const int c = meaning(m.row_scale).c;
  const float root = static_cast<float>(*graph_.Scalar(c));
  const std::optional<double> named =
      EpsilonOfName(graph_.tensor(graph_.Source(c)).name, "/sqrt_epsilon=");
  if (IsPositive(named) && static_cast<float>(std::sqrt(*named)) == root) {
    return *named;
  }
  return static_cast<double>(root) * root;
}

// x in the type and shape of y, and the nodes from there to the factor that
// was found: without them, x would not be an operand of the nodes that go away.
bool Matcher::FindX(const Meaning& m, int y, Candidate* candidate) const {
  for (int x : m.factors) {
    std::set<int> casts;
    for (int i = 0; i < kMaxVersions && x != kNone; ++i) {
      const TfLiteTensor& tensor = graph_.tensor(x);
      if (tensor.type == graph_.tensor(y).type && graph_.SameShape(x, y) &&
          !tensor.is_variable && tensor.sparsity == nullptr &&
          !graph_.IsStored(x)) {
        candidate->match.x = x;
        candidate->nodes = std::move(casts);
        return true;
      }
      casts.insert(graph_.producer(x));
      x = graph_.Before(x);
    }
  }
  return false;
}

// Whether the kernel takes the weight beside x.
bool Matcher::HasKernel(int weight, int x) const {
  const TfLiteType type = graph_.tensor(weight).type;
  const TfLiteType x_type = graph_.tensor(x).type;
  return type == kTfLiteFloat32 || type == x_type ||
         (x_type == kTfLiteFloat32 && graph_.IsStored(weight));
}

bool Matcher::FindWeight(const Meaning& m, Candidate* candidate) const {
  if (m.weight == kNone) return true;
  int weight = StoredWeight(m.weight);
  if (weight == kNone) weight = m.weight;
  // A computed weight needs one dimension, and a node of the match that reads
  // it.
  while (!graph_.IsStored(weight) && graph_.tensor(weight).dims->size != 1) {
    const int node = graph_.producer(weight);
    candidate->nodes.insert(node);
    weight = graph_.nodes()[node].a;
  }
  candidate->match.weight = weight;
  return HasKernel(weight, candidate->match.x);
}

bool Matcher::CollectNodes(int y, Candidate* candidate) const {
  std::vector<int> tensors = {y};
  while (!tensors.empty()) {
    const int tensor = tensors.back();
    tensors.pop_back();
    if (tensor == kNone ||
        !candidate->nodes.insert(graph_.producer(tensor)).second) {
      continue;
    }
    if (candidate->nodes.size() > kMaxNodes) return false;
    const std::array<int, 3>& parts = meaning(tensor).parts;
    tensors.insert(tensors.end(), parts.begin(), parts.end());
  }
  return true;
}

bool Matcher::IsReadInside(int tensor, const Candidate& candidate) const {
  if (graph_.is_output(tensor)) return false;
  // A list of consumers that are all inside is as short as the match.
  for (const int user : graph_.consumers(tensor)) {
    if (candidate.nodes.count(user) == 0 &&
        candidate.preparations.count(user) == 0) {
      return false;
    }
  }
  return true;
}

bool Matcher::IsPreparation(int tensor, const Candidate& candidate) const {
  const int node = graph_.producer(tensor);
  if (node == kNone || tensor == candidate.match.x ||
      tensor == candidate.match.weight || candidate.nodes.count(node) > 0) {
    return false;
  }
  switch (graph_.nodes()[node].op) {
    case Operator::kCast:
    case Operator::kReshape:
    case Operator::kOnes:
    case Operator::kIdentity:
    case Operator::kBroadcast:
      return IsReadInside(tensor, candidate);
    default:
      return false;
  }
}

void Matcher::CollectPreparations(Candidate* candidate) const {
  std::vector<int> positions(candidate->nodes.begin(), candidate->nodes.end());
  while (!positions.empty() && candidate->preparations.size() < kMaxNodes) {
    const int position = positions.back();
    positions.pop_back();
    const CanonicalNode& node = graph_.nodes()[position];
    for (const int tensor : {node.a, node.b}) {
      if (tensor == kNone || !IsPreparation(tensor, *candidate)) continue;
      const int producer = graph_.producer(tensor);
      if (candidate->preparations.insert(producer).second) {
        positions.push_back(producer);
      }
    }
  }
}

bool Matcher::IsClosed(const Candidate& candidate) const {
  for (const int position : candidate.nodes) {
    const int output = graph_.nodes()[position].output;
    if (output != candidate.match.y && !IsReadInside(output, candidate)) {
      return false;
    }
  }
  return true;
}

void Matcher::Consider(const Meaning& m, int y) {
  const int hidden_size = HiddenSize(m);
  if (hidden_size <= 0 || !graph_.SameShape(y, m.rows)) return;
  Candidate candidate;
  candidate.match.y = y;
  candidate.match.epsilon = Epsilon(m);
  candidate.match.range_safe = m.row_scale != kNone;
  if (!FindX(m, y, &candidate) || !FindWeight(m, &candidate)) return;
  // Nodes at x and the weight so far; the others follow from y.
  const std::set<int> operands = std::move(candidate.nodes);
  candidate.nodes.clear();
  if (!CollectNodes(y, &candidate)) return;
  candidate.nodes.insert(operands.begin(), operands.end());
  CollectPreparations(&candidate);
  // The nodes would not be in one partition with the node that computes the
  // weight between them.
  const int weight = candidate.match.weight;
  if (weight != kNone && graph_.producer(weight) > *candidate.nodes.begin()) {
    return;
  }
  if (IsClosed(candidate)) candidates_[m.root] = std::move(candidate);
}

std::vector<RmsNormMatch> Matcher::Run() {
  const int num_nodes = static_cast<int>(graph_.nodes().size());
  for (int position = 0; position < num_nodes; ++position) {
    const CanonicalNode& node = graph_.nodes()[position];
    const Meaning m = Apply(node);
    if (m.role == Role::kNone) continue;
    meanings_[node.output] = m;
    // A norm ends before what only repeats its values, in a wider type.
    const bool repeats = graph_.Before(node.output) != kNone;
    if (m.role == Role::kNorm && !(repeats && candidates_.count(m.root) > 0)) {
      Consider(m, node.output);
    }
  }
  std::vector<RmsNormMatch> matches;
  std::vector<bool> taken(graph_.nodes().size());
  for (auto& [root, candidate] : candidates_) {
    std::set<int> all = candidate.nodes;
    all.insert(candidate.preparations.begin(), candidate.preparations.end());
    // A cast between two norms can prepare an operand of both.
    if (std::any_of(all.begin(), all.end(),
                    [&](int position) { return taken[position]; })) {
      continue;
    }
    for (const int position : all) {
      taken[position] = true;
      candidate.match.nodes.push_back(graph_.nodes()[position].index);
    }
    matches.push_back(std::move(candidate.match));
  }
  return matches;
}

}  // namespace

std::vector<RmsNormMatch> FindRmsNorms(TfLiteContext* context,
                                       const std::vector<int>& node_indices,
                                       const std::vector<int>& outputs) {
  const CanonicalGraph graph(context, node_indices, outputs);
  return Matcher(graph).Run();
}

}  // namespace ai_edge_rms_norm
