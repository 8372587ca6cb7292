// The thin line between Python and the kernels: tensors and sizes go in, by name, and nothing comes out but what was written.
// Python checked everything (src/tidegate/ops/gru/native); the GIL is released while a kernel runs. Of PyTorch this file
// knows the names of some attributes of a tensor, no header: where it lies and how far apart its rows are it asks the tensor
// itself, so that no stride crosses the line as a number that could be another's (docs/decisions/025). QuickStep asks all
// that Python would ask of a stream's step (docs/decisions/012).

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gru.h"
#include "tensors.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <sys/mman.h>
#endif

namespace nb = nanobind;
using namespace nb::literals;
using namespace tidegate;

namespace {

// A tensor [outer, rows, width] or [rows, width] whose last axis lies side by side.
struct Strided {
  Address address = 0;          // 0: there is none
  int64_t outer = 0, row = 0;   // from one to the next, in values; without an outer axis both are a row's
  bool one_value = false;       // every stride is 0, and that was allowed for: the gradient of a sum
  nb::object copy;              // held, where the last axis of the tensor itself does not lie side by side

  Strided() = default;
  Strided(nb::handle tensor, int64_t width, bool may_be_one_value = false) {
    if (tensor.is_none()) return;
    if (!read(tensor, width, may_be_one_value)) {
      static PyObject* const contiguous = name("contiguous").release().ptr();
      copy = call(tensor, contiguous);
      read(copy, width, false);
      address = address_of(copy);
    } else {
      address = address_of(tensor);
    }
  }

 private:
  bool read(nb::handle tensor, int64_t width, bool may_be_one_value) {
    static PyObject* const stride = name("stride").release().ptr();
    const nb::object strides = call(tensor, stride);
    const Py_ssize_t axes = PyTuple_Check(strides.ptr()) ? PyTuple_GET_SIZE(strides.ptr()) : 0;
    if (axes != 2 && axes != 3) throw nb::type_error("a tensor of two or three axes is expected");
    outer = integer(PyTuple_GET_ITEM(strides.ptr(), 0)), row = integer(PyTuple_GET_ITEM(strides.ptr(), axes - 2));
    const int64_t unit = integer(PyTuple_GET_ITEM(strides.ptr(), axes - 1));
    one_value = may_be_one_value && outer == 0 && row == 0 && unit == 0;
    return unit == 1 || width == 1 || one_value;
  }
};

// At how much of the weights a call looks.
enum class Look : int { few = 0, lines = 1, all = 2 };

struct Handle {  // the packed weights of every direction of a layer, in one of these types
  std::vector<std::unique_ptr<Packed<float>>> f32;
  std::vector<std::unique_ptr<Packed<double>>> f64;
  std::vector<std::unique_ptr<Packed<bf16>>> b16;
  std::vector<std::unique_ptr<Packed<int8_t>>> i8;
  int64_t I = 0, H = 0;
  Reset reset = Reset::after;
  bool norm = false;
  const char* isa = isa_name();
  Handle() = default;
  Handle(const Handle&) = delete;

  // A digest of all weights, a value of each of their rows and columns, and a few values, as they were: see `looks_changed`.
  std::vector<Matrix> matrices;
  std::vector<uint64_t> lines;  // one after the other, room for 8 bytes each
  Digest then;
  bool shared = false;  // other processes may write to them
  struct Sample {
    const unsigned char* now;
    uint64_t then;
    size_t bytes;
  };
  std::vector<Sample> samples;

  void sample(Address weight, int64_t rows, int64_t columns, size_t bytes) {
    const int64_t values = rows * columns;
    matrices.push_back({reinterpret_cast<const void*>(weight), rows, columns, static_cast<int64_t>(bytes)});
    const size_t had = lines.size();
    lines.resize(had + static_cast<size_t>(matrices.back().lines()));
    copy_lines(matrices.back(), lines.data() + had);
    constexpr int64_t most = 8;
    for (int64_t i = 0; i < values && i < most; ++i) {
      const int64_t which = values <= most ? i : i * (values - 1) / (most - 1);
      Sample s{reinterpret_cast<const unsigned char*>(weight) + static_cast<size_t>(which) * bytes, 0, bytes};
      std::memcpy(&s.then, s.now, bytes);
      samples.push_back(s);
    }
  }

  bool lines_changed() const {
    const uint64_t* was = lines.data();
    for (const Matrix& m : matrices) {
      if (lines_differ(m, was)) return true;
      was += m.lines();
    }
    return false;
  }

  Digest digest() const {
    Digest d;
    for (const Matrix& m : matrices) tidegate::digest(m.at, m.bytes(), d);
    return d;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Matrix& m : matrices) sum += m.bytes();
    return sum;
  }

  // Whether the weights are no longer those that were packed. Python compares PyTorch's version counters, which tell
  // of every change but one made through `.data`, NumPy, a raw pointer, or by another process. Of these a few values
  // show whoever scales or replaces a whole weight, the lines whoever changes a row or a column, and the digest everybody.
  // The tensors are alive: Python holds them.
  bool looks_changed(Look look) const {
    if (isa != isa_name()) return true;  // or, in tests, another instruction set was chosen since
    for (const Sample& s : samples) {
      uint64_t value = 0;
      std::memcpy(&value, s.now, s.bytes);
      if (value != s.then) return true;
    }
    if (shared) look = Look::all;
    if (look == Look::few) return false;
    if (look == Look::lines && bytes() > 4096 * static_cast<int64_t>(sizeof(float))) return lines_changed();
    const Digest now = digest();
    return std::memcmp(&now, &then, sizeof now) != 0;
  }

  template <class Stored>
  auto& all() {
    if constexpr (sizeof(Stored) == 1) return i8;
    else if constexpr (sizeof(Stored) == 2) return b16;
    else if constexpr (sizeof(Stored) == 4) return f32;
    else return f64;
  }
  int bits() const { return !f32.empty() ? 32 : !f64.empty() ? 64 : !b16.empty() ? 16 : 8; }
};

// What weights of a layer there are, and how they are meant. The order of a direction's: w_ih, w_hh, with bias b_ih, b_hh,
// with layer norm g_ih, g_hh.
struct Kind {
  int64_t I = 0, H = 0;
  bool bias = false, norm = false, before = false, wide = false;
  int narrow = 0;  // the bits of what is multiplied, where these are fewer than the weights': 16 (bfloat16) or 8

  size_t each() const { return 2 + (bias ? 2u : 0u) + (norm ? 2u : 0u); }
  Reset reset() const { return before ? Reset::before : Reset::after; }
  int bits() const { return narrow ? narrow : wide ? 64 : 32; }
};

// work(v), with v of the type of so many bits.
template <class Work>
auto with_bits(int bits, const Work& work) {
  switch (bits) {
    case 8: return work(int8_t{});
    case 16: return work(bf16{});
    case 64: return work(double{});
    default: return work(float{});
  }
}

template <class Real>
Weights<Real> weights_of(const std::vector<Address>& list, size_t direction, const Kind& kind) {
  const Address* w = list.data() + direction * kind.each();
  const Address* g = w + (kind.bias ? 4 : 2);
  return {at<Real>(w[0]),
          at<Real>(w[1]),
          kind.bias ? at<Real>(w[2]) : nullptr,
          kind.bias ? at<Real>(w[3]) : nullptr,
          kind.norm ? at<Real>(g[0]) : nullptr,
          kind.norm ? at<Real>(g[1]) : nullptr,
          kind.I,
          kind.H};
}

template <class Stored>
void pack(Handle& handle, const std::vector<Address>& weights, const Kind& kind, int threads) {
  handle.I = kind.I, handle.H = kind.H, handle.reset = kind.reset(), handle.norm = kind.norm;
  for (size_t d = 0; d < weights.size() / kind.each(); ++d) {
    handle.all<Stored>().push_back(
        std::make_unique<Packed<Stored>>(weights_of<Sum<Stored>>(weights, d, kind), kind.I, kind.H, kind.reset(), kind.norm, threads));
  }
}

// ... to be kept, and so with samples and the digest of what was packed. shared: other processes may change the weights.
template <class Real>
std::unique_ptr<Handle> keep(const std::vector<Address>& weights, const Kind& kind, bool shared, int threads) {
  auto handle = std::make_unique<Handle>();
  for (size_t first = 0; first < weights.size(); first += kind.each()) {
    handle->sample(weights[first], 3 * kind.H, kind.I, sizeof(Real));
    handle->sample(weights[first + 1], 3 * kind.H, kind.H, sizeof(Real));
    for (size_t v = 2; v < kind.each(); ++v) handle->sample(weights[first + v], 3 * kind.H, 1, sizeof(Real));
  }
  handle->shared = shared, handle->then = handle->digest();
  // After: whoever changes them meanwhile is noticed.
  with_bits(kind.bits(), [&](auto v) { pack<decltype(v)>(*handle, weights, kind, threads); });
  return handle;
}

// What a call has beyond nn.GRU's: `Extras` of both directions, and lengths. All contiguous; every address may be 0. It holds
// the tensors that it was made of.
struct More {
  Address lengths = 0, starts = 0;                           // [B]
  Address resets = 0;                                        // [T, B]
  Address fresh = 0, mask = 0;                               // [D, B, H]
  Address zone = 0;                                          // [rows, D H]
  double zone_rate = 0;
  Address norms = 0;                                         // [D, rows, 4]
  // Backwards alone
  Address d_saved = 0;                                       // [D, rows, 4, H]
  Address d_fresh = 0;                                       // [D, B, H]
  bool again = false;                                        // nothing was saved
  std::vector<nb::object> held;

  Address hold(nb::handle tensor) {
    if (!tensor.is_none()) held.push_back(nb::borrow(tensor));
    return address_of(tensor);
  }

  template <class Real>
  Extras<Real> extras(int64_t d, int64_t D, int64_t B, int64_t H) const {
    return {at<uint8_t>(resets), B, 1, at<Real>(fresh, d * B * H), H, at<Real>(mask, d * B * H),
            at<uint8_t>(zone, d * H), D * H,  static_cast<Real>(zone_rate)};
  }
};

// A result of many megabytes comes fresh from the system at every call, and a fault for each of its 4 KiB pages costs
// as much as a tenth of the work that fills them: ask for large pages. A hint; whoever can't give them says no.
void ask_for_large_pages(Address address, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr Address page = Address{1} << 21;
  if (address == 0 || bytes < int64_t{4} * static_cast<int64_t>(page)) return;
  const Address first = (address + page - 1) / page * page, last = (address + static_cast<Address>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  static_cast<void>(address);
  static_cast<void>(bytes);
#endif
}

// Whether a state is none, or zeros, as far as its first value tells: what a sequence begins with.
bool is_beginning(Address state, bool wide) {
  if (state == 0) return true;
  return wide ? *at<double>(state) == 0 : *at<float>(state) == 0;
}

// What no step wrote: the output of padding is 0.
template <class Value>
void clear_padding(const Sizes& sizes, Value* output, int64_t row) {
  if (!sizes.lengths || sizes.starts) return;
  for (int64_t t = 0; t < sizes.T; ++t) {
    for (int64_t b = 0; b < sizes.B; ++b) {
      if (t >= sizes.lengths[b]) std::memset(static_cast<void*>(output + (t * sizes.B + b) * row), 0, sizeof(Value) * static_cast<size_t>(row));
    }
  }
}

struct ForwardCall {
  int64_t T, B, rows;            // rows: how many the results have
  Strided x, h_0;                // [T, B, I] or [rows, I]; [D, B, H] or none: zeros
  Address batch_sizes;           // [T], or none
  Address output, h_n, saved;    // [..., D H]; [D, B, H]; [D, rows, slots, H] or none
  const More& more;
  int threads;
  bool rounded = false;          // the output is bfloat16
};

template <class Stored>
void run_forward(Handle& handle, const ForwardCall& call) {
  using Real = Sum<Stored>;
  const int64_t B = call.B, H = handle.H, saved_each = call.rows * tidegate::slots(handle.norm) * H;
  const More& more = call.more;
  const Sizes sizes{call.T, B, handle.I, H, at<int64_t>(call.batch_sizes), at<int64_t>(more.lengths), at<int64_t>(more.starts),
                    handle.reset, handle.norm, call.threads};
  const auto& packed = handle.all<Stored>();
  const int64_t D = static_cast<int64_t>(packed.size());
  ask_for_large_pages(call.saved, D * saved_each * static_cast<int64_t>(sizeof(Stored)));
  ask_for_large_pages(call.output, D * call.rows * H * static_cast<int64_t>(sizeof(Real)));
  Forward<Stored> runs[2];
  for (int64_t d = 0; d < D; ++d) {
    Forward<Stored>& run = runs[d];
    run = {};
    run.x = at<Input<Stored>>(call.x.address), run.x_step = call.x.outer, run.x_row = call.x.row;
    run.weights = packed[static_cast<size_t>(d)].get();
    run.h_0 = at<Real>(call.h_0.address, d * call.h_0.outer), run.h_0_row = call.h_0.row;
    if (call.rounded) run.rounded = at<Stored>(call.output, d * H);
    else run.output = at<Real>(call.output, d * H);
    run.output_row = D * H;
    run.h_n = at<Real>(call.h_n, d * B * H);
    run.saved = at<Stored>(call.saved, d * saved_each);
    run.norms = at<Real>(more.norms, d * call.rows * 4);
    run.reverse = d == 1;
    run.extras = more.extras<Real>(d, D, B, H);
  }
  if (call.rounded) clear_padding(sizes, at<Stored>(call.output), D * H);
  else clear_padding(sizes, at<Real>(call.output), D * H);
  forward(sizes, runs, static_cast<int>(D));
}

bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// One step of a stack of layers in one direction: a layer's new state is what the layer above reads.
template <class Stored>
void run_step(const std::vector<Handle*>& layers, double zone_rate, int64_t B, const Strided& x, const Strided& h, Address y,
              Address h_n, int threads) {
  using Real = Sum<Stored>;
  Forward<Stored> run{};
  std::vector<Input<Stored>> rounded;
  const auto reads = [&](const Real* from, int64_t row, int64_t width) {
    if constexpr (sizeof(Input<Stored>) == sizeof(Real)) {
      run.x = from, run.x_row = row;
    } else {
      rounded.resize(static_cast<size_t>(B * width));
      for (int64_t b = 0; b < B; ++b) {
        for (int64_t k = 0; k < width; ++k) rounded[static_cast<size_t>(b * width + k)] = to_bf16(from[b * row + k]);
      }
      run.x = rounded.data(), run.x_row = width;
    }
  };
  reads(at<Real>(x.address), x.row, layers[0]->I);
  run.h_0_row = h.row;
  run.extras.zone_rate = static_cast<Real>(zone_rate);
  for (size_t k = 0; k < layers.size(); ++k) {
    const Handle& layer = *layers[k];
    const Sizes sizes{1, B, layer.I, layer.H, nullptr, nullptr, nullptr, layer.reset, layer.norm, threads};
    Real* to = at<Real>(h_n, static_cast<int64_t>(k) * B * layer.H);
    const bool last = k + 1 == layers.size();  // its state comes out twice: as y, and as a state of its own
    run.weights = layers[k]->all<Stored>()[0].get();
    run.h_0 = at<Real>(h.address, static_cast<int64_t>(k) * h.outer);
    run.output = last ? at<Real>(y) : to, run.output_row = layer.H;
    run.h_n = last ? to : nullptr;
    forward(sizes, &run, 1);
    if (!last) reads(to, layer.H, layer.H);
  }
}

struct BackwardCall {
  int64_t T, B, rows;
  Strided x, h_0;                           // as in ForwardCall
  Address batch_sizes, output, saved;       // output: none for a single step, which doesn't read it
  Strided d_output, d_h_n;                  // like output and h_n; none: zeros
  Address d_x, d_h_0;                       // [D, rows, I]; [D, B, H]; none where nobody asks
  std::vector<Address> weights, d_weights;  // side by side
  const More& more;
  int threads;
};

template <class Stored>
void run_backward(const Kind& kind, const BackwardCall& call) {
  using Real = Sum<Stored>;
  const int64_t B = call.B, I = kind.I, H = kind.H, rows = call.rows, slots = tidegate::slots(kind.norm);
  const More& more = call.more;
  const Sizes sizes{call.T, B, I, H, at<int64_t>(call.batch_sizes), at<int64_t>(more.lengths), at<int64_t>(more.starts),
                    kind.reset(), kind.norm, call.threads};
  const int64_t D = static_cast<int64_t>(call.weights.size() / kind.each());
  Handle again;
  if (more.again) pack<Stored>(again, call.weights, kind, call.threads);
  const Real* d_output = at<Real>(call.d_output.address);
  std::vector<Real> alike;
  if (d_output && call.d_output.one_value) {
    alike.assign(static_cast<size_t>(D * H), *d_output);
    d_output = alike.data();
  }
  Backward<Stored> runs[2];
  for (int64_t d = 0; d < D; ++d) {
    const Weights<Real> d_w = weights_of<Real>(call.d_weights, static_cast<size_t>(d), kind);
    const auto to = [](const Real* gradient) { return const_cast<Real*>(gradient); };
    Backward<Stored>& run = runs[d];
    run.x = at<Stored>(call.x.address), run.x_step = call.x.outer, run.x_row = call.x.row;
    run.weights = weights_of<Real>(call.weights, static_cast<size_t>(d), kind);
    run.packed = more.again ? again.all<Stored>()[static_cast<size_t>(d)].get() : nullptr;
    run.h_0 = at<Real>(call.h_0.address, d * call.h_0.outer), run.h_0_row = call.h_0.row;
    run.output = at<Stored>(call.output, d * H), run.output_row = D * H;
    run.saved = at<Stored>(call.saved, d * rows * slots * H);
    run.norms = at<Real>(more.norms, d * rows * 4);
    run.d_output = d_output ? d_output + d * H : nullptr;
    run.d_output_step = call.d_output.outer, run.d_output_row = call.d_output.row;
    run.d_h_n = at<Real>(call.d_h_n.address, d * call.d_h_n.outer), run.d_h_n_row = call.d_h_n.row;
    run.d_saved = at<Real>(more.d_saved, d * rows * 4 * H);
    run.reverse = d == 1;
    run.extras = more.extras<Real>(d, D, B, H);
    run.d_x = at<Real>(call.d_x, d * rows * I);
    run.d_h_0 = at<Real>(call.d_h_0, d * B * H);
    run.d_fresh = at<Real>(more.d_fresh, d * B * H);
    run.d_w_ih = to(d_w.w_ih), run.d_w_hh = to(d_w.w_hh);
    run.d_b_ih = to(d_w.b_ih), run.d_b_hh = to(d_w.b_hh);
    run.d_g_ih = to(d_w.g_ih), run.d_g_hh = to(d_w.g_hh);
  }
  backward(sizes, runs, static_cast<int>(D));
}

// y = W x + b, of contiguous tensors of one type.
struct AffineCall {
  bool wide;  // float64
  int64_t rows, I, O;
  Address x, weight, bias, y;
  bool in_blocks = false;

  template <class Real>
  void run_as(int threads) const {
    Affine<Real> one{};
    one.x = at<Real>(x), one.x_row = I;
    one.w = at<Real>(weight), one.b = at<Real>(bias), one.y = at<Real>(y);
    one.rows = rows, one.I = I, one.O = O;
    if (in_blocks) affine_in_blocks(one, threads);
    else affine(one, threads);
  }
  void run(int threads) const { wide ? run_as<double>(threads) : run_as<float>(threads); }
};

// The same for one row after the other, in a stream: holds on to its tensors.
struct AffineInto {
  AffineCall call;
  nb::object held[3];

  void operator()(Address x) {  // (too short to give the GIL away; see QuickStep)
    call.x = x;
    call.run(1);
  }
};

template <class Real>
void run_affine_backward(int64_t rows, int64_t I, int64_t O, Address x, Address weight, Address d_y, Address d_x, Address d_w,
                         Address d_b, int threads) {
  affine_backward<Real>({at<Real>(x), at<Real>(weight), at<Real>(d_y), at<Real>(d_x), at<Real>(d_w), at<Real>(d_b), rows, I, O},
                        threads);
}

// A question of a tensor, by its name. What torch.Tensor has in C, an attribute or a method of no arguments, is called itself:
// to look for it on the type again at every question takes longer than the answer.
class Question {
 public:
  Question(nb::handle type, const char* text) : name_(name(text)), found_(get(type, name_)) {
    PyObject* found = found_.ptr();
    if (Py_IS_TYPE(found, &PyGetSetDescr_Type)) {
      getter_ = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
    } else if (Py_IS_TYPE(found, &PyMethodDescr_Type)) {
      method_ = reinterpret_cast<PyMethodDescrObject*>(found)->d_method;
      const int flags = method_->ml_flags;
      if (flags != METH_NOARGS && flags != (METH_VARARGS | METH_KEYWORDS)) method_ = nullptr;
    }
  }
  // Of an instance of that type.
  nb::object operator()(nb::handle v) const {
    if (getter_) return nb::steal(checked(getter_->get(v.ptr(), getter_->closure)));
    if (!method_) {
      const nb::object answer = get(v, name_);
      return PyCallable_Check(answer.ptr()) ? nb::steal(checked(PyObject_CallNoArgs(answer.ptr()))) : answer;
    }
    if (method_->ml_flags == METH_NOARGS) return nb::steal(checked(method_->ml_meth(v.ptr(), nullptr)));
    static PyObject* const none = PyTuple_New(0);
    const auto with_keywords = reinterpret_cast<PyCFunctionWithKeywords>(reinterpret_cast<void (*)()>(method_->ml_meth));
    return nb::steal(checked(with_keywords(v.ptr(), none, nullptr)));
  }
  bool is_true(nb::handle v) const {
    const nb::object answer = (*this)(v);
    if (answer.ptr() == Py_True) return true;
    if (answer.ptr() == Py_False) return false;
    const int result = PyObject_IsTrue(answer.ptr());
    if (result < 0) throw nb::python_error();
    return result != 0;
  }
  int64_t number(nb::handle v) const { return integer((*this)(v)); }

 private:
  nb::object name_, found_;
  PyGetSetDef* getter_ = nullptr;
  PyMethodDef* method_ = nullptr;
};

// What GRU asks of its arguments at every call, asked from here: thirty questions of a PyTorch object take 1.5 us in C and 5 in
// Python, and a step takes one. Knows PyTorch by the names of its attributes alone.
class Quick {
 protected:
  // weights: the parameters, in the order of the module's dictionary. dtype: theirs. tensor: torch.Tensor. unusual: functions of no
  // arguments that are all false (or None) where nothing but values is asked for. threads: torch.get_num_threads.
  Quick(nb::list weights, nb::object dtype, nb::object tensor, nb::tuple unusual, nb::object threads)
      : weights_(weights), dtype_(dtype), tensor_(tensor), unusual_(unusual), threads_(threads) {}

  nb::list weights_;
  nb::object dtype_, tensor_;
  nb::tuple unusual_;
  nb::object threads_;
  const Question dtype_of_{tensor_, "dtype"}, is_cpu_{tensor_, "is_cpu"}, is_neg_{tensor_, "is_neg"}, contiguous_{tensor_, "is_contiguous"},
      shape_{tensor_, "shape"}, stride_{tensor_, "stride"}, version_{tensor_, "_version"}, data_ptr_{tensor_, "data_ptr"},
      requires_grad_{tensor_, "requires_grad"};
  const nb::object new_empty_ = name("new_empty");

  // For the garbage collector: a parameter's hook may hold the module that holds this. (Names hold nothing.)
  int visit(visitproc visit, void* arg) const {
    for (const nb::object* held : {static_cast<const nb::object*>(&weights_), &dtype_, &tensor_, static_cast<const nb::object*>(&unusual_), &threads_}) {
      Py_VISIT(held->ptr());
    }
    return 0;
  }
  void let_go() { weights_.reset(), dtype_.reset(), tensor_.reset(), unusual_.reset(), threads_.reset(); }

  static bool true_(const nb::object& value) {
    checked(value.ptr());
    const int result = PyObject_IsTrue(value.ptr());
    if (result < 0) throw nb::python_error();
    return result != 0;
  }

  bool usual() const {
    for (nb::handle question : unusual_) {
      if (true_(nb::steal(PyObject_CallNoArgs(question.ptr())))) return false;
    }
    return true;
  }
  bool plain(nb::handle v) const {
    return reinterpret_cast<PyObject*>(Py_TYPE(v.ptr())) == tensor_.ptr() && dtype_of_(v).is(dtype_) && is_cpu_.is_true(v) && !is_neg_.is_true(v);
  }
  bool contiguous(nb::handle v) const { return contiguous_.is_true(v); }
  Address address(nb::handle v) const { return v.is_none() ? 0 : static_cast<Address>(data_ptr_.number(v)); }
  bool shape(nb::handle tensor, Py_ssize_t axes, int64_t* sizes) const {
    const nb::object shape = shape_(tensor);
    if (!PyTuple_Check(shape.ptr()) || PyTuple_GET_SIZE(shape.ptr()) != axes) return false;
    for (Py_ssize_t i = 0; i < axes; ++i) {
      PyObject* size = PyTuple_GET_ITEM(shape.ptr(), i);
      if (!PyLong_Check(size)) return false;
      sizes[i] = PyLong_AsLongLong(size);
    }
    return true;
  }
  nb::object empty(nb::handle like, std::initializer_list<int64_t> sizes) const {
    PyObject* arguments[5] = {nullptr, like.ptr()};
    nb::object numbers[3];
    size_t n = 1;
    for (int64_t size : sizes) {
      numbers[n - 1] = nb::steal(checked(PyLong_FromLongLong(size)));
      arguments[n + 1] = numbers[n - 1].ptr();
      ++n;
    }
    return nb::steal(checked(PyObject_VectorcallMethod(new_empty_.ptr(), arguments + 1, n | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr)));
  }
  // A tensor of three axes as it lies; false where its last axis does not lie side by side.
  bool lies(nb::handle v, int64_t width, bool may_be_one_value, Strided& at) const {
    if (v.is_none()) return true;
    const nb::object strides = stride_(v);
    if (!PyTuple_Check(strides.ptr()) || PyTuple_GET_SIZE(strides.ptr()) != 3) return false;
    at.address = address(v);
    at.outer = integer(PyTuple_GET_ITEM(strides.ptr(), 0)), at.row = integer(PyTuple_GET_ITEM(strides.ptr(), 1));
    const int64_t unit = integer(PyTuple_GET_ITEM(strides.ptr(), 2));
    at.one_value = may_be_one_value && at.outer == 0 && at.row == 0 && unit == 0;
    return unit == 1 || width == 1 || at.one_value;
  }
  int threads() const { return static_cast<int>(integer(nb::steal(checked(PyObject_CallNoArgs(threads_.ptr()))))); }

  struct Mark {
    int64_t version, address;
  };
  // Whether a module's dictionary, or a list, has these parameters, and no others.
  bool are_these(nb::handle parameters) const {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    size_t i = 0;
    const size_t n = nb::len(weights_);
    if (PyList_Check(parameters.ptr())) {
      if (nb::len(parameters) != n) return false;
      while (i < n && PyList_GET_ITEM(parameters.ptr(), static_cast<Py_ssize_t>(i)) == weights_[i].ptr()) ++i;
      return i == n;
    }
    if (!PyDict_Check(parameters.ptr())) return false;
    while (PyDict_Next(parameters.ptr(), &at, &key, &value)) {
      if (i == n || value != weights_[i].ptr()) return false;
      ++i;
    }
    return i == n;
  }
  bool has(nb::handle weight, const Mark& mark) const {
    return version_.number(weight) == mark.version && data_ptr_.number(weight) == mark.address;
  }
};

// `GRU.step` in a stream.
class QuickStep : Quick {
 public:
  // marks: the weights' versions and addresses, as they were when `handles` (one a layer) were packed. zone_rate: zoneout's, of the
  // whole stack.
  QuickStep(nb::list weights, const std::vector<std::pair<int64_t, Address>>& marks, nb::list handles, double zone_rate,
            nb::object dtype, nb::object tensor, nb::tuple unusual, nb::object threads)
      : Quick(weights, dtype, tensor, unusual, threads), handles_(handles), zone_rate_(zone_rate) {
    for (nb::handle layer : handles_) layers_.push_back(nb::cast<Handle*>(layer));
    for (const auto& mark : marks) marks_.push_back({mark.first, static_cast<int64_t>(mark.second)});
  }

  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    const auto* me = nb::inst_ptr<QuickStep>(self);
    Py_VISIT(me->handles_.ptr());
    return me->visit(visit, arg);
  }
  static int clear(PyObject* self) {
    auto* me = nb::inst_ptr<QuickStep>(self);
    me->handles_.reset(), me->let_go();
    return 0;
  }
  static PyType_Slot slots[3];

  // (y, h_n), or None where anything is out of the ordinary: then the long way, with its checks and messages, is to be taken.
  nb::object operator()(nb::handle x, nb::handle h, nb::handle parameters) const {
    if (!plain(x) || !plain(h) || !contiguous(x) || !contiguous(h) || !usual()) return nb::none();
    const int64_t layers = static_cast<int64_t>(layers_.size()), I = layers_[0]->I, H = layers_[0]->H;
    int64_t x_shape[2], h_shape[3];
    if (!shape(x, 2, x_shape) || !shape(h, 3, h_shape)) return nb::none();
    const int64_t B = x_shape[0];
    if (x_shape[1] != I || h_shape[0] != layers || h_shape[1] != B || h_shape[2] != H) return nb::none();
    Strided from, state;
    from.address = address(x), from.row = I;
    state.address = address(h), state.outer = B * H, state.row = H;
    const int bits = layers_[0]->bits();
    const Look look = is_beginning(state.address, bits == 64) ? Look::lines : Look::few;
    if (!are_these(parameters) || !unchanged(look)) return nb::none();
    nb::object like = like_B_ == B ? like_y_ : nb::object();
    if (!like.is_valid()) {  // (without memory; to make another one like it takes half the time of `new_empty`)
      like = empty(x, {B, H});
      like.attr("untyped_storage")().attr("resize_")(0);
      const nb::object old = std::move(like_y_);  // (another thread may have come by, as PyTorch gives the GIL away: both at once)
      like_y_ = like, like_B_ = B;
    }
    const auto another = [this](nb::handle like) { return nb::steal(checked(PyObject_CallOneArg(empty_like_.ptr(), like.ptr()))); };
    nb::object y = another(like), h_n = another(h);
    const Address to = address(y), next = address(h_n);
    const int threads = this->threads();
    {
      // Giving the GIL away for a microsecond's work would cost a tenth of it, and waiting to get it back far more.
      std::optional<nb::gil_scoped_release> free;
      if (layers * B * H * (I + H) > 100000) free.emplace();
      with_bits(bits, [&](auto v) { run_step<decltype(v)>(layers_, zone_rate_, B, from, state, to, next, threads); });
    }
    return nb::make_tuple(y, h_n);
  }

 private:
  nb::list handles_;
  double zone_rate_;
  std::vector<Handle*> layers_;
  std::vector<Mark> marks_;
  const nb::object empty_like_ = nb::module_::import_("torch").attr("empty_like");
  mutable nb::object like_y_;
  mutable int64_t like_B_ = -1;

  // Of the same versions and at the same addresses as when they were packed.
  bool unchanged(Look look) const {
    for (size_t i = 0; i < marks_.size(); ++i) {
      if (!has(weights_[i], marks_[i])) return false;
    }
    for (const Handle* layer : layers_) {
      if (layer->looks_changed(look)) return false;
    }
    return true;
  }
};

PyType_Slot QuickStep::slots[3] = {{Py_tp_traverse, reinterpret_cast<void*>(QuickStep::traverse)},
                                   {Py_tp_clear, reinterpret_cast<void*>(QuickStep::clear)},
                                   {0, nullptr}};

// What a call of QuickLayer leaves for its backward pass.
struct QuickCall {
  nb::object layer;                   // the QuickLayer
  int64_t T = 0, B = 0;
  bool batch_first = false;
  Strided x, h_0;                     // what autograd saves; h_0 may be none
  Address saved = 0;
  std::vector<std::pair<int64_t, Address>> weights;  // their versions and addresses
  // Until autograd has taken them: what it is to save, and what the call returns.
  nb::object to_save, results;

  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    const auto* me = nb::inst_ptr<QuickCall>(self);
    for (const nb::object* held : {&me->layer, &me->to_save, &me->results}) Py_VISIT(held->ptr());
    return 0;
  }
  static int clear(PyObject* self) {
    auto* me = nb::inst_ptr<QuickCall>(self);
    me->layer.reset(), me->to_save.reset(), me->results.reset();
    return 0;
  }
  static PyType_Slot slots[3];
};

PyType_Slot QuickCall::slots[3] = {{Py_tp_traverse, reinterpret_cast<void*>(QuickCall::traverse)},
                                   {Py_tp_clear, reinterpret_cast<void*>(QuickCall::clear)},
                                   {0, nullptr}};

// One layer in both directions over a short sequence, forwards and backwards (docs/decisions/050).
class QuickLayer : Quick {
 public:
  // most: values that an output may have; longer calls gain nothing. handle: the packed weights for calls without gradients, and
  // marks: their versions and addresses at that time; None and none where nothing was packed. apply: an autograd.Function's, of a
  // QuickCall, x and h_0 (None where they want no gradient) and the weights. grads: torch.is_grad_enabled. has_storage: whether a
  // tensor is one, not many (of a vmap). empty_like: torch.empty_like.
  QuickLayer(nb::list weights, const Kind& kind, const std::vector<std::pair<int64_t, Address>>& marks, nb::object handle, int64_t most,
             nb::object dtype, nb::object tensor, nb::tuple unusual, nb::object threads, nb::object apply, nb::object grads,
             nb::object has_storage, nb::object empty_like)
      : Quick(weights, dtype, tensor, unusual, threads), kind_(kind), handle_(handle), most_(most), apply_(apply), grads_(grads),
        has_storage_(has_storage), empty_like_(empty_like) {
    if (!handle.is_none()) packed_ = nb::cast<Handle*>(handle);
    for (const auto& mark : marks) marks_.push_back({mark.first, static_cast<int64_t>(mark.second)});
  }

  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    const auto* me = nb::inst_ptr<QuickLayer>(self);
    for (const nb::object* held : {&me->handle_, &me->apply_, &me->grads_, &me->has_storage_, &me->empty_like_}) Py_VISIT(held->ptr());
    return me->visit(visit, arg);
  }
  static int clear(PyObject* self) {
    auto* me = nb::inst_ptr<QuickLayer>(self);
    me->handle_.reset(), me->apply_.reset(), me->grads_.reset(), me->has_storage_.reset(), me->empty_like_.reset(), me->let_go();
    return 0;
  }
  static PyType_Slot slots[3];

  nb::list weights() const { return weights_; }
  int64_t directions() const { return static_cast<int64_t>(nb::len(weights_) / kind_.each()); }
  bool is_of(nb::handle weights, nb::handle handle) const {
    if (!handle.is_none() && !handle.is(handle_)) return false;
    if (nb::len(weights) != nb::len(weights_)) return false;
    size_t i = 0;
    for (nb::handle w : weights) {
      if (!w.is(weights_[i++])) return false;
    }
    return true;
  }

  // (output, h_n), or None where anything is out of the ordinary. weights: a module's dictionary, or a list.
  nb::object operator()(nb::handle me, nb::handle x, nb::handle h_0, nb::handle parameters, bool batch_first) {
    const int64_t I = kind_.I, H = kind_.H, D = directions();
    int64_t sizes[3], h_sizes[3];
    if (!plain(x) || !shape(x, 3, sizes) || sizes[2] != I) return nb::none();
    const int64_t T = sizes[batch_first ? 1 : 0], B = sizes[batch_first ? 0 : 1], rows = T * B;
    if (rows == 0 || rows * D * H > most_ || !are_these(parameters) || !usual()) return nb::none();
    if (!h_0.is_none() && (!plain(h_0) || !shape(h_0, 3, h_sizes) || h_sizes[0] != D || h_sizes[1] != B || h_sizes[2] != H)) return nb::none();
    Strided from, state;
    if (!lies(x, I, false, from) || !lies(h_0, H, false, state)) return nb::none();
    if (batch_first) std::swap(from.outer, from.row);

    bool needs_x = false, needs_h_0 = false, needs = false;
    std::vector<Address> weights;
    std::vector<std::pair<int64_t, Address>> marks;
    if (true_(nb::steal(PyObject_CallNoArgs(grads_.ptr())))) {
      needs_x = wants(x), needs_h_0 = !h_0.is_none() && wants(h_0), needs = needs_x || needs_h_0;
      weights.reserve(8), marks.reserve(8);
      for (size_t i = 0; i < nb::len(weights_); ++i) {
        const nb::handle w = weights_[i];
        if (!fits(w, i % kind_.each())) return nb::none();
        needs = needs || wants(w);
        weights.push_back(address(w));
        marks.emplace_back(version_.number(w), weights.back());
      }
      // Whoever trains changes the weights before the next call. But a loop over single steps does so after all of them.
      if (T == 1) {
        if (unchanged(Look::lines)) weights.clear();
        else if (marks == before_) return nb::none();  // now it pays to keep them packed, which is done elsewhere
        before_ = marks;
      }
    } else if (!unchanged(rows >= 1024 ? Look::all : T >= 16 || is_beginning(state.address, kind_.wide) ? Look::lines : Look::few)) {
      return nb::none();
    }

    const int64_t values = rows * D * H;
    // Behind what the kernel saves lies a copy of the output: for a small one that takes less time than to have it saved by autograd.
    const Sizes3 shape{T, B, batch_first};
    nb::object output = output_(*this, shape, x, D * H), h_n = h_n_(*this, {D, B, false}, x, H), saved;
    if (needs) saved = saved_(*this, {1, 1, false}, x, 5 * values);
    const ForwardCall call{T, B, rows, from, state, 0, address(output), address(h_n), needs ? address(saved) : 0, nothing_more(), threads()};
    {
      std::optional<nb::gil_scoped_release> free;  // as in QuickStep
      if (values * (I + H) > 100000) free.emplace();
      (kind_.wide ? run<double> : run<float>)(packed_, weights, kind_, static_cast<size_t>(values), call);
    }
    if (!needs) return nb::make_tuple(output, h_n);

    auto* after = new QuickCall();
    const nb::object held = nb::cast(after, nb::rv_policy::take_ownership);
    after->layer = nb::borrow(me), after->T = T, after->B = B, after->batch_first = batch_first, after->x = from, after->h_0 = state;
    after->saved = call.saved, after->weights = std::move(marks);
    after->to_save = h_0.is_none() ? nb::make_tuple(x, saved) : nb::make_tuple(x, saved, h_0);
    after->results = nb::make_tuple(output, h_n);
    const Py_ssize_t n = static_cast<Py_ssize_t>(nb::len(weights_));
    const nb::object arguments = nb::steal(checked(PyTuple_New(3 + n)));
    const auto put = [&](Py_ssize_t i, nb::handle value) { PyTuple_SET_ITEM(arguments.ptr(), i, value.inc_ref().ptr()); };
    put(0, held), put(1, needs_x ? x : nb::handle(Py_None)), put(2, needs_h_0 ? h_0 : nb::handle(Py_None));
    for (Py_ssize_t i = 0; i < n; ++i) put(3 + i, weights_[static_cast<size_t>(i)]);
    output.reset(), h_n.reset();
    return nb::steal(checked(PyObject_Call(apply_.ptr(), arguments.ptr(), nullptr)));
  }

  // The gradients of what `apply` was given, or None where anything is out of the ordinary. ctx: autograd's.
  nb::object backward(const QuickCall& after, nb::handle ctx, nb::handle d_output, nb::handle d_h_n) {
    static PyObject *const saved_tensors = name("saved_tensors").release().ptr(), *const needs_input_grad = name("needs_input_grad").release().ptr();
    if (true_(nb::steal(PyObject_CallNoArgs(grads_.ptr()))) || !good(d_output) || !good(d_h_n)) return nb::none();
    const int64_t I = kind_.I, H = kind_.H, T = after.T, B = after.B, rows = T * B;
    const int64_t D = directions(), values = rows * D * H;
    Strided d_out, d_last;
    if (!lies(d_output, D * H, true, d_out) || !lies(d_h_n, H, false, d_last)) return nb::none();
    if (after.batch_first) std::swap(d_out.outer, d_out.row);
    std::vector<Address> weights, d_weights;
    weights.reserve(8), d_weights.reserve(8);
    for (size_t i = 0; i < after.weights.size(); ++i) {
      const auto& [version, address] = after.weights[i];
      if (!has(weights_[i], {version, static_cast<int64_t>(address)}) || !fits(weights_[i], i % kind_.each())) return nb::none();
      weights.push_back(address);
    }
    const nb::object saved = get(ctx, saved_tensors), needs = get(ctx, needs_input_grad);  // (raises where they are freed, or x was changed)
    if (!PyTuple_Check(saved.ptr()) || PyTuple_GET_SIZE(saved.ptr()) < 2 || !PyTuple_Check(needs.ptr()) ||
        PyTuple_GET_SIZE(needs.ptr()) != static_cast<Py_ssize_t>(3 + weights.size())) return nb::none();
    const nb::handle x = PyTuple_GET_ITEM(saved.ptr(), 0);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(saved.ptr()); ++i) {
      const nb::handle v = PyTuple_GET_ITEM(saved.ptr(), i);
      if (!PyObject_TypeCheck(v.ptr(), reinterpret_cast<PyTypeObject*>(tensor_.ptr()))) return nb::none();
      if (address(v) != (i == 0 ? after.x.address : i == 1 ? after.saved : after.h_0.address)) return nb::none();
    }

    const auto need = [&](size_t i) { return PyTuple_GET_ITEM(needs.ptr(), static_cast<Py_ssize_t>(i)) == Py_True; };
    const nb::object results = nb::steal(checked(PyTuple_New(static_cast<Py_ssize_t>(3 + weights.size()))));
    const auto put = [&](size_t i, nb::object value) {
      const Address address = this->address(value);
      PyTuple_SET_ITEM(results.ptr(), static_cast<Py_ssize_t>(i), value.release().ptr());
      return address;
    };
    put(0, nb::none());
    const Address d_x = put(1, need(1) ? d_x_(*this, {T, B, after.batch_first}, x, I) : nb::none());
    const Address d_h_0 = put(2, need(2) ? h_n_(*this, {D, B, false}, x, H) : nb::none());
    for (size_t i = 0; i < weights.size(); ++i) {
      d_weights.push_back(put(3 + i, need(3 + i) ? nb::steal(checked(PyObject_CallOneArg(empty_like_.ptr(), weights_[i].ptr()))) : nb::none()));
    }
    const size_t value_bytes = kind_.wide ? sizeof(double) : sizeof(float);
    const BackwardCall call{T, B, rows, after.x, after.h_0, 0, after.saved + static_cast<size_t>(4 * values) * value_bytes, after.saved, d_out,
                            d_last, d_x, d_h_0, std::move(weights), std::move(d_weights), nothing_more(), threads()};
    {
      std::optional<nb::gil_scoped_release> free;  // as in QuickStep
      if (values * (I + H) > 50000) free.emplace();
      (kind_.wide ? run_back<double> : run_back<float>)(kind_, call);
    }
    return results;
  }

 private:
  Kind kind_;
  nb::object handle_;
  Handle* packed_ = nullptr;
  std::vector<Mark> marks_;
  std::vector<std::pair<int64_t, Address>> before_;  // at the last single step with gradients
  int64_t most_;
  nb::object apply_, grads_, has_storage_, empty_like_;
  nb::object new_empty_strided_ = name("new_empty_strided");

  struct Sizes3 {
    int64_t T, B;
    bool batch_first;
    bool operator==(const Sizes3& other) const { return T == other.T && B == other.B && batch_first == other.batch_first; }
  };
  // Makes an empty tensor [T, B, width], or [B, T, width] that lies so. From the second one of a shape on it is made like another one
  // without memory, which takes half the time.
  class Empty {
   public:
    // (PyTorch gives the GIL away while it makes a tensor, and another thread may come by here: nothing is to be taken from `this` after that
    // without another look, and what is used is held.)
    nb::object operator()(const QuickLayer& layer, const Sizes3& sizes, nb::handle x, int64_t width) {
      const auto same = [&] { return sizes == sizes_ && width == width_; };
      if (!same()) {
        const nb::object old = std::move(like_);  // (let go at the end)
        sizes_ = sizes, width_ = width;
        return layer.empty_as(sizes, x, width);
      }
      nb::object like = like_;
      if (!like.is_valid()) {
        like = layer.empty_as(sizes, x, width);
        like.attr("untyped_storage")().attr("resize_")(0);
        if (same()) like_ = like;
      }
      return nb::steal(checked(PyObject_CallOneArg(layer.empty_like_.ptr(), like.ptr())));
    }

   private:
    Sizes3 sizes_{-1, -1, false};
    int64_t width_ = -1;
    nb::object like_;
  };
  Empty output_, h_n_, saved_, d_x_;

  static const More& nothing_more() {
    static const More more;
    return more;
  }
  bool wants(nb::handle v) const { return requires_grad_.is_true(v); }

  // Of the shape and type that C++ reads at its address: `.data` takes anything.
  bool fits(nb::handle w, size_t which) const {
    int64_t sizes[2];
    if (!dtype_of_(w).is(dtype_) || !is_cpu_.is_true(w) || is_neg_.is_true(w) || !contiguous(w)) return false;
    if (!shape(w, which < 2 ? 2 : 1, sizes) || sizes[0] != 3 * kind_.H) return false;
    return which >= 2 || sizes[1] == (which == 0 ? kind_.I : kind_.H);
  }
  // As they were when they were packed (at how much a call looks: weights.py).
  bool unchanged(Look look) const {
    if (!packed_) return false;
    for (size_t i = 0; i < marks_.size(); ++i) {
      if (!has(weights_[i], marks_[i])) return false;
    }
    return !packed_->looks_changed(look);
  }
  nb::object empty_as(const Sizes3& sizes, nb::handle x, int64_t width) const {
    const auto& [T, B, batch_first] = sizes;
    if (!batch_first) return empty(x, {T, B, width});
    const nb::object shape = nb::make_tuple(B, T, width), strides = nb::make_tuple(width, B * width, 1);
    PyObject* arguments[4] = {nullptr, x.ptr(), shape.ptr(), strides.ptr()};
    return nb::steal(checked(PyObject_VectorcallMethod(new_empty_strided_.ptr(), arguments + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr)));
  }
  // A gradient whose values lie in memory as they are, or none.
  bool good(nb::handle d) const {
    return d.is_none() || (plain(d) && true_(nb::steal(PyObject_CallOneArg(has_storage_.ptr(), d.ptr()))));
  }

  template <class Real>
  static void run(Handle* packed, const std::vector<Address>& weights, const Kind& kind, size_t values, const ForwardCall& call) {
    if (weights.empty()) {
      run_forward<Real>(*packed, call);
    } else {
      Handle handle;  // training changes the weights before the next call: nothing is kept
      pack<Real>(handle, weights, kind, call.threads);
      run_forward<Real>(handle, call);
    }
    if (call.saved) std::memcpy(at<Real>(call.saved) + 4 * values, at<Real>(call.output), sizeof(Real) * values);
  }
  // In both directions d_x is the sum of two.
  template <class Real>
  static void run_back(const Kind& kind, const BackwardCall& call) {
    if (call.d_x == 0 || call.weights.size() == kind.each()) return run_backward<Real>(kind, call);
    const size_t n = static_cast<size_t>(call.rows * kind.I);
    std::vector<Real> both(2 * n);
    BackwardCall into = call;
    into.d_x = reinterpret_cast<Address>(both.data());
    run_backward<Real>(kind, into);
    Real* sum = at<Real>(call.d_x);
    for (size_t i = 0; i < n; ++i) sum[i] = both[i] + both[n + i];
  }
};

PyType_Slot QuickLayer::slots[3] = {{Py_tp_traverse, reinterpret_cast<void*>(QuickLayer::traverse)},
                                    {Py_tp_clear, reinterpret_cast<void*>(QuickLayer::clear)},
                                    {0, nullptr}};

// The OpenMP runtime that PyTorch brought into the process, if one is to be seen.
bool share_openmp() {
#if defined(__linux__)
  const auto parallel = reinterpret_cast<OmpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const auto number = reinterpret_cast<OmpNumber>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  const auto which = reinterpret_cast<OmpNumber>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  if (parallel && number && which) {
    use_openmp(parallel, number, which);
    return true;
  }
#endif
  use_openmp(nullptr, nullptr, nullptr);
  return false;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ kernels of the native back end. Takes addresses and checks nothing: use tidegate.ops.gru.native.";
  nb::set_leak_warnings(false);  // Python's modules keep constants of these types until the very end
  nb::class_<Handle>(m, "Handle").def("looks_changed", [](const Handle& handle, int look) {
    std::optional<nb::gil_scoped_release> free;  // as in QuickStep
    if (look == 2 && handle.bytes() > 1000000) free.emplace();
    return handle.looks_changed(static_cast<Look>(look));
  }, "look"_a);
  nb::class_<Kind>(m, "Kind").def("__init__", [](Kind* kind, int64_t I, int64_t H, bool bias, bool norm, bool before, bool wide,
                                                 int narrow) {
    new (kind) Kind{I, H, bias, norm, before, wide, narrow};
  }, nb::kw_only(), "I"_a, "H"_a, "bias"_a, "norm"_a, "before"_a, "wide"_a, "narrow"_a = 0);
  nb::class_<More>(m, "More").def("__init__", [](More* more, nb::handle lengths, nb::handle starts, nb::handle resets, nb::handle fresh,
                                                 nb::handle mask, nb::handle zone, double zone_rate, nb::handle norms,
                                                 nb::handle d_saved, nb::handle d_fresh, bool again) {
    new (more) More();
    more->lengths = more->hold(lengths), more->starts = more->hold(starts), more->resets = more->hold(resets);
    more->fresh = more->hold(fresh), more->mask = more->hold(mask), more->zone = more->hold(zone), more->zone_rate = zone_rate;
    more->norms = more->hold(norms), more->d_saved = more->hold(d_saved), more->d_fresh = more->hold(d_fresh);
    more->again = again;
  }, nb::kw_only(), "lengths"_a.none() = nb::none(), "starts"_a.none() = nb::none(), "resets"_a.none() = nb::none(),
     "fresh"_a.none() = nb::none(), "mask"_a.none() = nb::none(), "zone"_a.none() = nb::none(), "zone_rate"_a = 0.0,
     "norms"_a.none() = nb::none(), "d_saved"_a.none() = nb::none(), "d_fresh"_a.none() = nb::none(),
     // cppcheck-suppress assignBoolToPointer ; what it takes for a pointer is a literal of nanobind's
     "again"_a = false);
  m.def("pack", [](nb::handle weights, const Kind& kind, bool shared, int threads) {
    const std::vector<Address> addresses = addresses_of(weights);
    nb::gil_scoped_release free;
    return (kind.wide ? keep<double> : keep<float>)(addresses, kind, shared, threads).release();
  }, "weights"_a, "kind"_a, nb::kw_only(), "shared"_a, "threads"_a, nb::rv_policy::take_ownership);
  // Without samples: for weights that nobody can change, as they are nowhere else.
  m.def("pack_alone", [](nb::handle weights, const Kind& kind, int threads) {
    const std::vector<Address> addresses = addresses_of(weights);
    nb::gil_scoped_release free;
    auto handle = std::make_unique<Handle>();
    with_bits(kind.bits(), [&](auto v) { pack<decltype(v)>(*handle, addresses, kind, threads); });
    return handle.release();
  }, "weights"_a, "kind"_a, nb::kw_only(), "threads"_a, nb::rv_policy::take_ownership);
  m.def("is_beginning", [](nb::handle state, bool wide) { return is_beginning(address_of(state), wide); }, "state"_a.none(), "wide"_a);
  m.def("forward", [](Handle& handle, int64_t T, int64_t B, int64_t rows, nb::handle x, nb::handle h_0, nb::handle batch_sizes,
                      nb::handle output, nb::handle h_n, nb::handle saved, const More& more, int threads, bool rounded) {
    const ForwardCall call{T, B, rows, Strided(x, handle.I), Strided(h_0, handle.H), address_of(batch_sizes), address_of(output),
                           address_of(h_n), address_of(saved), more, threads, rounded};
    nb::gil_scoped_release free;
    with_bits(handle.bits(), [&](auto v) { run_forward<decltype(v)>(handle, call); });
  }, "handle"_a, nb::kw_only(), "T"_a, "B"_a, "rows"_a, "x"_a, "h_0"_a.none(), "batch_sizes"_a.none(), "output"_a, "h_n"_a,
     "saved"_a.none(), "more"_a, "threads"_a,
     // cppcheck-suppress assignBoolToPointer ; as above
     "rounded"_a = false);
  m.def("forward_once", [](nb::handle weights, const Kind& kind, int64_t T, int64_t B, int64_t rows, nb::handle x, nb::handle h_0,
                           nb::handle batch_sizes, nb::handle output, nb::handle h_n, nb::handle saved, const More& more, int threads,
                           bool rounded) {
    const std::vector<Address> addresses = addresses_of(weights);
    const ForwardCall call{T, B, rows, Strided(x, kind.I), Strided(h_0, kind.H), address_of(batch_sizes), address_of(output),
                           address_of(h_n), address_of(saved), more, threads, rounded};
    nb::gil_scoped_release free;
    Handle handle;  // training changes the weights before the next call: nothing is kept
    with_bits(kind.bits(), [&](auto v) {
      pack<decltype(v)>(handle, addresses, kind, threads);
      run_forward<decltype(v)>(handle, call);
    });
  }, "weights"_a, "kind"_a, nb::kw_only(), "T"_a, "B"_a, "rows"_a, "x"_a, "h_0"_a.none(), "batch_sizes"_a.none(), "output"_a, "h_n"_a,
     "saved"_a.none(), "more"_a, "threads"_a,
     // cppcheck-suppress assignBoolToPointer ; as above
     "rounded"_a = false);
  m.def("backward", [](nb::handle weights, const Kind& kind, int64_t T, int64_t B, int64_t rows, nb::handle x, nb::handle h_0,
                       nb::handle batch_sizes, nb::handle output, nb::handle saved, nb::handle d_output, nb::handle d_h_n, nb::handle d_x,
                       nb::handle d_h_0, nb::handle d_weights, const More& more, int threads) {
    const int64_t D = static_cast<int64_t>(nb::len(weights) / kind.each());
    const BackwardCall call{T, B, rows, Strided(x, kind.I), Strided(h_0, kind.H), address_of(batch_sizes), address_of(output),
                            address_of(saved), Strided(d_output, D * kind.H, true), Strided(d_h_n, kind.H), address_of(d_x), address_of(d_h_0),
                            addresses_of(weights), addresses_of(d_weights), more, threads};
    nb::gil_scoped_release free;
    with_bits(kind.bits(), [&](auto v) {
      if constexpr (sizeof v > 1) run_backward<decltype(v)>(kind, call);
    });
  }, "weights"_a, "kind"_a, nb::kw_only(), "T"_a, "B"_a, "rows"_a, "x"_a, "h_0"_a.none(), "batch_sizes"_a.none(), "output"_a.none(),
     "saved"_a.none(), "d_output"_a.none(), "d_h_n"_a.none(), "d_x"_a.none(), "d_h_0"_a.none(), "d_weights"_a, "more"_a, "threads"_a);
  m.def("step", [](const std::vector<Handle*>& layers, double zone_rate, int64_t B, nb::handle x, nb::handle h, nb::handle y,
                   nb::handle h_n, int threads) {
    const Strided from(x, layers[0]->I), state(h, layers[0]->H);
    const Address to = address_of(y), next = address_of(h_n);
    nb::gil_scoped_release free;
    with_bits(layers[0]->bits(), [&](auto v) { run_step<decltype(v)>(layers, zone_rate, B, from, state, to, next, threads); });
  }, "layers"_a, nb::kw_only(), "zone_rate"_a, "B"_a, "x"_a, "h"_a.none(), "y"_a, "h_n"_a, "threads"_a);
  nb::class_<QuickStep>(m, "QuickStep", nb::type_slots(QuickStep::slots))
      .def(nb::init<nb::list, const std::vector<std::pair<int64_t, Address>>&, nb::list, double, nb::object, nb::object,
                    nb::tuple, nb::object>())
      .def("__call__", &QuickStep::operator(), nb::arg().none(), nb::arg().none(), nb::arg());
  nb::class_<QuickCall>(m, "QuickCall", nb::type_slots(QuickCall::slots))
      .def("begin", [](nb::handle me, nb::handle ctx) {
        static PyObject *const call = name("call").release().ptr(), *const to_save = name("to_save").release().ptr(),
                        *const materialize_grads = name("materialize_grads").release().ptr();
        QuickCall& after = nb::cast<QuickCall&>(me);
        const nb::object saves = std::exchange(after.to_save, nb::object());
        if (PyObject_SetAttr(ctx.ptr(), call, me.ptr()) || PyObject_SetAttr(ctx.ptr(), to_save, saves.ptr()) ||
            PyObject_SetAttr(ctx.ptr(), materialize_grads, Py_False)) throw nb::python_error();
        return std::exchange(after.results, nb::object());
      })
      .def("backward", [](const QuickCall& call, nb::handle ctx, nb::handle d_output, nb::handle d_h_n) {
        return nb::cast<QuickLayer&>(call.layer).backward(call, ctx, d_output, d_h_n);
      }, nb::arg(), nb::arg().none(), nb::arg().none())
      .def_ro("layer", &QuickCall::layer)
      .def_ro("batch_first", &QuickCall::batch_first)
      .def_ro("T", &QuickCall::T)
      .def_ro("B", &QuickCall::B)
      .def_ro("weights", &QuickCall::weights);
  nb::class_<QuickLayer>(m, "QuickLayer", nb::type_slots(QuickLayer::slots))
      .def(nb::init<nb::list, const Kind&, const std::vector<std::pair<int64_t, Address>>&, nb::object, int64_t, nb::object, nb::object,
                    nb::tuple, nb::object, nb::object, nb::object, nb::object, nb::object>(), "weights"_a, "kind"_a, nb::kw_only(), "marks"_a,
           "handle"_a.none(), "most"_a, "dtype"_a, "tensor"_a, "unusual"_a, "threads"_a, "apply"_a, "grads"_a, "has_storage"_a, "empty_like"_a)
      .def("is_of", &QuickLayer::is_of, nb::arg(), nb::arg().none())
      .def_prop_ro("weights", &QuickLayer::weights)
      .def_prop_ro("directions", &QuickLayer::directions)
      .def("__call__", [](nb::handle me, nb::handle x, nb::handle h_0, nb::handle parameters, bool batch_first) {
        return nb::cast<QuickLayer&>(me)(me, x, h_0, parameters, batch_first);
      }, nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg());
  m.def("affine", [](bool wide, int64_t rows, int64_t I, int64_t O, nb::handle x, nb::handle weight, nb::handle bias, nb::handle y,
                     bool in_blocks, int threads) {
    const AffineCall call{wide, rows, I, O, address_of(x), address_of(weight), address_of(bias), address_of(y), in_blocks};
    std::optional<nb::gil_scoped_release> free;  // as in QuickStep
    if (rows * I * O > 100000) free.emplace();
    call.run(threads);
  }, nb::kw_only(), "wide"_a, "rows"_a, "I"_a, "O"_a, "x"_a, "weight"_a, "bias"_a, "y"_a, "in_blocks"_a, "threads"_a);
  m.def("affine_backward", [](bool wide, int64_t rows, int64_t I, int64_t O, nb::handle x, nb::handle weight, nb::handle d_y,
                              nb::handle d_x, nb::handle d_w, nb::handle d_b, int threads) {
    const Address from[] = {address_of(x), address_of(weight), address_of(d_y)};
    const Address to[] = {address_of(d_x), address_of(d_w), address_of(d_b)};
    nb::gil_scoped_release free;
    (wide ? run_affine_backward<double> : run_affine_backward<float>)(rows, I, O, from[0], from[1], from[2], to[0], to[1], to[2],
                                                                      threads);
  }, nb::kw_only(), "wide"_a, "rows"_a, "I"_a, "O"_a, "x"_a, "weight"_a, "d_y"_a, "d_x"_a.none(), "d_w"_a.none(), "d_b"_a.none(),
     "threads"_a);
  nb::class_<AffineInto>(m, "AffineInto")
      .def("__init__", [](AffineInto* into, bool wide, int64_t I, int64_t O, nb::object weight, nb::object bias, nb::object y) {
        new (into) AffineInto{{wide, 1, I, O, 0, address_of(weight), address_of(bias), address_of(y)}, {weight, bias, y}};
      }, nb::kw_only(), "wide"_a, "I"_a, "O"_a, "weight"_a, "bias"_a, "y"_a)
      .def("__call__", &AffineInto::operator());
  m.def("isa_names", [] {
    std::vector<std::string> names;
    for (const char* const* name = isa_names(); *name; ++name) names.emplace_back(*name);
    return names;
  });
  m.def("isa_name", [] { return std::string(isa_name()); });
  m.def("set_isa", [](const std::string& name) { return set_isa(name.c_str()); });
  m.def("share_openmp", &share_openmp);
  bind_update(m);
  m.def("peak_gflops", [](int threads, double seconds) {
    nb::gil_scoped_release free;
    return peak_gflops(threads, seconds);
  }, nb::arg("threads"), nb::arg("seconds") = 0.2);
}
