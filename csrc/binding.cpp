// The thin line between Python and the kernels: addresses and sizes go in, nothing comes out but what was written.
// Python checked everything (src/tidegate/ops/gru/native); the GIL is released while a kernel runs. The one
// exception is QuickStep, which takes tensors and asks Python's questions itself (docs/decisions/012).

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "gru.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <sys/mman.h>
#endif

namespace nb = nanobind;
using namespace tidegate;

namespace {

using Address = uintptr_t;

template <class Real>
Real* at(Address address, int64_t values = 0) {
  return address ? reinterpret_cast<Real*>(address) + values : nullptr;
}

struct Handle {  // the packed weights of every direction of a layer, float32 or float64
  std::vector<std::unique_ptr<Packed<float>>> f32;
  std::vector<std::unique_ptr<Packed<double>>> f64;
  int64_t I = 0, H = 0;
  Reset reset = Reset::after;
  bool norm = false;
  const char* isa = isa_name();
  Handle() = default;
  Handle(const Handle&) = delete;

  // A few values of every weight, as they were: see `looks_changed`.
  struct Sample {
    const unsigned char* now;
    uint64_t then;
    size_t bytes;
  };
  std::vector<Sample> samples;

  void sample(Address weight, int64_t values, size_t bytes) {
    constexpr int64_t most = 8;
    for (int64_t i = 0; i < values && i < most; ++i) {
      const int64_t which = values <= most ? i : i * (values - 1) / (most - 1);
      Sample s{reinterpret_cast<const unsigned char*>(weight) + static_cast<size_t>(which) * bytes, 0, bytes};
      std::memcpy(&s.then, s.now, bytes);
      samples.push_back(s);
    }
  }

  // Whether the weights are no longer those that were packed. Python compares PyTorch's version counters, which tell
  // of every change but one made through `.data`, NumPy or a raw pointer: whoever scales or replaces a whole weight in
  // that way shows here. The tensors are alive: Python holds them.
  bool looks_changed() const {
    if (isa != isa_name()) return true;  // or, in tests, another instruction set was chosen since
    for (const Sample& s : samples) {
      uint64_t value = 0;
      std::memcpy(&value, s.now, s.bytes);
      if (value != s.then) return true;
    }
    return false;
  }

  template <class Real>
  auto& all() {
    if constexpr (sizeof(Real) == 4) return f32;
    else return f64;
  }
};

// What weights of a layer there are, and how they are meant. The order of a direction's: w_ih, w_hh, with bias b_ih, b_hh,
// with layer norm g_ih, g_hh.
struct Kind {
  int64_t I = 0, H = 0;
  bool bias = false, norm = false, before = false, wide = false;

  size_t each() const { return 2 + (bias ? 2u : 0u) + (norm ? 2u : 0u); }
  Reset reset() const { return before ? Reset::before : Reset::after; }
};

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

template <class Real>
void pack(Handle& handle, const std::vector<Address>& weights, const Kind& kind, int threads) {
  handle.I = kind.I, handle.H = kind.H, handle.reset = kind.reset(), handle.norm = kind.norm;
  for (size_t d = 0; d < weights.size() / kind.each(); ++d) {
    handle.all<Real>().push_back(
        std::make_unique<Packed<Real>>(weights_of<Real>(weights, d, kind), kind.I, kind.H, kind.reset(), kind.norm, threads));
  }
}

// ... to be kept, and so with samples of what was packed.
template <class Real>
std::unique_ptr<Handle> keep(const std::vector<Address>& weights, const Kind& kind, int threads) {
  auto handle = std::make_unique<Handle>();
  for (size_t first = 0; first < weights.size(); first += kind.each()) {
    handle->sample(weights[first], 3 * kind.H * kind.I, sizeof(Real));
    handle->sample(weights[first + 1], 3 * kind.H * kind.H, sizeof(Real));
    for (size_t v = 2; v < kind.each(); ++v) handle->sample(weights[first + v], 3 * kind.H, sizeof(Real));
  }
  pack<Real>(*handle, weights, kind, threads);  // after: whoever changes them meanwhile is noticed
  return handle;
}

// What a call has beyond nn.GRU's: `Extras` of both directions, and lengths. Every address may be 0. All contiguous but
// for the resets.
struct More {
  Address lengths = 0, starts = 0;                           // [B]
  Address resets = 0;                                        // [T, B]
  int64_t resets_step = 0, resets_row = 0;
  Address fresh = 0, mask = 0;                               // [D, B, H]
  Address zone = 0;                                          // [rows, D H]
  double zone_rate = 0;
  Address norms = 0;                                         // [D, rows, 4]
  // Backwards alone
  Address d_saved = 0;                                       // [D, rows, 4, H]
  Address d_fresh = 0;                                       // [D, B, H]
  bool again = false;                                        // nothing was saved

  template <class Real>
  Extras<Real> extras(int64_t d, int64_t D, int64_t B, int64_t H) const {
    return {at<uint8_t>(resets), resets_step, resets_row,        at<Real>(fresh, d * B * H), H, at<Real>(mask, d * B * H),
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
  static_cast<void>(address), static_cast<void>(bytes);
#endif
}

// What no step wrote: the output of padding is 0.
template <class Real>
void clear_padding(const Sizes& sizes, Real* output, int64_t row) {
  if (!sizes.lengths || sizes.starts) return;
  for (int64_t t = 0; t < sizes.T; ++t) {
    for (int64_t b = 0; b < sizes.B; ++b) {
      if (t >= sizes.lengths[b]) std::memset(output + (t * sizes.B + b) * row, 0, sizeof(Real) * static_cast<size_t>(row));
    }
  }
}

template <class Real>
void run_forward(Handle& handle, int64_t T, int64_t B, Address x, int64_t x_step, int64_t x_row, Address h_0, int64_t h_0_run,
                 int64_t h_0_row, Address output, Address h_n, Address saved, int64_t rows, Address batch_sizes, const More& more,
                 int threads) {
  const Sizes sizes{T, B, handle.I, handle.H, at<int64_t>(batch_sizes), at<int64_t>(more.lengths), at<int64_t>(more.starts),
                    handle.reset, handle.norm, threads};
  const int64_t H = handle.H, slots = tidegate::slots(handle.norm);
  const auto& packed = handle.all<Real>();
  const int64_t D = static_cast<int64_t>(packed.size());
  ask_for_large_pages(saved, D * rows * slots * H * static_cast<int64_t>(sizeof(Real)));
  ask_for_large_pages(output, D * rows * H * static_cast<int64_t>(sizeof(Real)));
  Forward<Real> runs[2];
  for (int64_t d = 0; d < D; ++d) {
    runs[d] = {at<Real>(x), x_step, x_row, packed[d].get(), at<Real>(h_0, d * h_0_run), h_0_row, at<Real>(output, d * H), D * H,
               at<Real>(h_n, d * B * H), at<Real>(saved, d * rows * slots * H), at<Real>(more.norms, d * rows * 4), d == 1,
               more.extras<Real>(d, D, B, H)};
  }
  clear_padding(sizes, at<Real>(output), D * H);
  forward(sizes, runs, static_cast<int>(D));
}

// One step of a stack of layers in one direction: a layer's new state is what the layer above reads.
template <class Real>
void run_step(const std::vector<Handle*>& layers, double zone_rate, int64_t B, Address x, int64_t x_row, Address h, int64_t h_layer,
              int64_t h_row, Address y, Address h_n, int threads) {
  const Real* from = at<Real>(x);
  Extras<Real> extras;
  extras.zone_rate = static_cast<Real>(zone_rate);
  for (size_t k = 0; k < layers.size(); ++k) {
    const Handle& layer = *layers[k];
    const Sizes sizes{1, B, layer.I, layer.H, nullptr, nullptr, nullptr, layer.reset, layer.norm, threads};
    Real* to = at<Real>(h_n, static_cast<int64_t>(k) * B * layer.H);
    const bool last = k + 1 == layers.size();  // its state comes out twice: as y, and as a state of its own
    const Forward<Real> run{from, 0, x_row, layers[k]->all<Real>()[0].get(), at<Real>(h, static_cast<int64_t>(k) * h_layer), h_row,
                            last ? at<Real>(y) : to, layer.H, last ? to : nullptr, nullptr, nullptr, false, extras};
    forward(sizes, &run, 1);
    from = to, x_row = layer.H;
  }
}

template <class Real>
void run_backward(const std::vector<Address>& weights, const Kind& kind, int64_t T, int64_t B, Address x, int64_t x_step,
                  int64_t x_row, Address h_0, int64_t h_0_run, int64_t h_0_row, Address output, Address saved, int64_t rows,
                  Address d_output, int64_t d_output_step, int64_t d_output_row, int64_t d_output_unit, Address d_h_n,
                  int64_t d_h_n_run, int64_t d_h_n_row, Address d_x, Address d_h_0, const std::vector<Address>& d_weights,
                  Address batch_sizes, const More& more, int threads) {
  const int64_t I = kind.I, H = kind.H, slots = tidegate::slots(kind.norm);
  const Sizes sizes{T, B, I, H, at<int64_t>(batch_sizes), at<int64_t>(more.lengths), at<int64_t>(more.starts), kind.reset(),
                    kind.norm, threads};
  const int64_t D = static_cast<int64_t>(weights.size() / kind.each());
  Handle again;
  if (more.again) pack<Real>(again, weights, kind, threads);
  std::vector<Real> alike;
  if (d_output && d_output_unit == 0) {  // one value, seen everywhere: the gradient of a sum
    alike.assign(static_cast<size_t>(D * H), *at<Real>(d_output));
    d_output = reinterpret_cast<Address>(alike.data()), d_output_step = d_output_row = 0;
  }
  Backward<Real> runs[2];
  for (int64_t d = 0; d < D; ++d) {
    const Weights<Real> d_w = weights_of<Real>(d_weights, static_cast<size_t>(d), kind);
    const auto to = [](const Real* gradient) { return const_cast<Real*>(gradient); };
    runs[d] = {at<Real>(x), x_step, x_row, weights_of<Real>(weights, static_cast<size_t>(d), kind),
               more.again ? again.all<Real>()[static_cast<size_t>(d)].get() : nullptr, at<Real>(h_0, d * h_0_run), h_0_row,
               at<Real>(output, d * H), D * H, at<Real>(saved, d * rows * slots * H), at<Real>(more.norms, d * rows * 4),
               at<Real>(d_output, d * H), d_output_step, d_output_row, at<Real>(d_h_n, d * d_h_n_run), d_h_n_row,
               at<Real>(more.d_saved, d * rows * 4 * H), d == 1, more.extras<Real>(d, D, B, H), at<Real>(d_x, d * rows * I),
               at<Real>(d_h_0, d * B * H), at<Real>(more.d_fresh, d * B * H), to(d_w.w_ih), to(d_w.w_hh), to(d_w.b_ih),
               to(d_w.b_hh), to(d_w.g_ih), to(d_w.g_hh)};
  }
  backward(sizes, runs, static_cast<int>(D));
}

// What `GRU.step` asks of its arguments at every step of a stream, asked from here: thirty questions of a PyTorch object
// take 1.5 us in C and 5 in Python, and the step itself takes one. Knows PyTorch by the names of its attributes alone.
class QuickStep {
 public:
  // weights: the parameters that `handles` (one a layer) were packed from, in the order of the module's dictionary; marks:
  // their versions and addresses, as they were when they were packed.
  // zone_rate: zoneout's, of the whole stack. tensor: torch.Tensor. unusual: functions of no arguments that are all false (or None) where nothing but values is
  // asked for. threads: torch.get_num_threads.
  QuickStep(nb::list weights, const std::vector<std::pair<int64_t, Address>>& marks, nb::list handles, double zone_rate,
            nb::object dtype, nb::object tensor, nb::tuple unusual, nb::object threads)
      : weights_(weights), handles_(handles), zone_rate_(zone_rate), dtype_(dtype), tensor_(tensor), unusual_(unusual), threads_(threads) {
    for (nb::handle layer : handles_) layers_.push_back(nb::cast<Handle*>(layer));
    for (const auto& mark : marks) marks_.push_back({mark.first, static_cast<int64_t>(mark.second)});
  }

  // For the garbage collector: a parameter's hook may hold the module that holds this.
  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    const auto* me = nb::inst_ptr<QuickStep>(self);
    for (const nb::object* held : {static_cast<const nb::object*>(&me->weights_), static_cast<const nb::object*>(&me->handles_),
                                   &me->dtype_, &me->tensor_, static_cast<const nb::object*>(&me->unusual_), &me->threads_}) {
      Py_VISIT(held->ptr());
    }
    return 0;
  }
  static int clear(PyObject* self) {
    auto* me = nb::inst_ptr<QuickStep>(self);
    me->weights_.reset(), me->handles_.reset(), me->dtype_.reset(), me->tensor_.reset(), me->unusual_.reset(), me->threads_.reset();
    return 0;
  }
  static PyType_Slot slots[3];

  // (y, h_n), or None where anything is out of the ordinary: then the long way, with its checks and messages, is to be taken.
  nb::object operator()(nb::handle x, nb::handle h, nb::handle parameters) const {
    if (!plain(x) || !plain(h) || !nb::isinstance<nb::dict>(parameters)) return nb::none();
    for (nb::handle question : unusual_) {
      if (true_(nb::steal(PyObject_CallNoArgs(question.ptr())))) return nb::none();
    }
    const int64_t layers = static_cast<int64_t>(layers_.size()), I = layers_[0]->I, H = layers_[0]->H;
    int64_t x_shape[2], h_shape[3];
    if (!shape(x, 2, x_shape) || !shape(h, 3, h_shape)) return nb::none();
    const int64_t B = x_shape[0];
    if (x_shape[1] != I || h_shape[0] != layers || h_shape[1] != B || h_shape[2] != H || !unchanged(parameters)) return nb::none();
    nb::object y = empty(x, {B, H}), h_n = empty(x, {layers, B, H});
    const Address from = address(x), state = address(h), to = address(y), next = address(h_n);
    const int threads = static_cast<int>(integer(nb::steal(checked(PyObject_CallNoArgs(threads_.ptr())))));
    {
      // Giving the GIL away for a microsecond's work would cost a tenth of it, and waiting to get it back far more.
      std::optional<nb::gil_scoped_release> free;
      if (layers * B * H * (I + H) > 100000) free.emplace();
      (layers_[0]->f32.empty() ? run_step<double> : run_step<float>)(layers_, zone_rate_, B, from, I, state, B * H, H, to, next, threads);
    }
    return nb::make_tuple(y, h_n);
  }

 private:
  struct Mark {
    int64_t version, address;
  };
  nb::list weights_, handles_;
  double zone_rate_;
  nb::object dtype_, tensor_;
  nb::tuple unusual_;
  nb::object threads_;
  std::vector<Handle*> layers_;
  std::vector<Mark> marks_;
  nb::object version_ = name("_version"), data_ptr_ = name("data_ptr"), dtype_name_ = name("dtype"), is_cpu_ = name("is_cpu"),
             is_neg_ = name("is_neg"), is_contiguous_ = name("is_contiguous"), shape_ = name("shape"), new_empty_ = name("new_empty");

  static nb::object name(const char* text) { return nb::steal(checked(PyUnicode_InternFromString(text))); }
  static PyObject* checked(PyObject* result) {
    if (!result) throw nb::python_error();
    return result;
  }
  static nb::object get(nb::handle object, const nb::object& attribute) {
    return nb::steal(checked(PyObject_GetAttr(object.ptr(), attribute.ptr())));
  }
  static nb::object call(nb::handle object, const nb::object& method) {
    return nb::steal(checked(PyObject_CallMethodNoArgs(object.ptr(), method.ptr())));
  }
  static int64_t integer(const nb::object& value) {
    const int64_t result = PyLong_AsLongLong(value.ptr());
    if (result == -1 && PyErr_Occurred()) throw nb::python_error();
    return result;
  }
  static bool true_(const nb::object& value) {
    checked(value.ptr());
    const int result = PyObject_IsTrue(value.ptr());
    if (result < 0) throw nb::python_error();
    return result != 0;
  }
  Address address(nb::handle tensor) const { return static_cast<Address>(integer(call(tensor, data_ptr_))); }

  bool plain(nb::handle v) const {
    return reinterpret_cast<PyObject*>(Py_TYPE(v.ptr())) == tensor_.ptr() && get(v, dtype_name_).is(dtype_) && true_(get(v, is_cpu_)) &&
           true_(call(v, is_contiguous_)) && !true_(call(v, is_neg_));
  }
  bool shape(nb::handle tensor, Py_ssize_t axes, int64_t* sizes) const {
    const nb::object shape = get(tensor, shape_);
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
  // The same parameters, of the same versions, at the same addresses, as when they were packed.
  bool unchanged(nb::handle parameters) const {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    size_t i = 0;
    while (PyDict_Next(parameters.ptr(), &at, &key, &value)) {
      if (i == marks_.size() || value != weights_[i].ptr()) return false;
      ++i;
    }
    if (i != marks_.size()) return false;
    for (i = 0; i < marks_.size(); ++i) {
      const nb::handle w = weights_[i];
      if (integer(get(w, version_)) != marks_[i].version || integer(call(w, data_ptr_)) != marks_[i].address) return false;
    }
    for (const Handle* layer : layers_) {
      if (layer->looks_changed()) return false;
    }
    return true;
  }
};

PyType_Slot QuickStep::slots[3] = {{Py_tp_traverse, reinterpret_cast<void*>(QuickStep::traverse)},
                                   {Py_tp_clear, reinterpret_cast<void*>(QuickStep::clear)},
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
  nb::class_<Handle>(m, "Handle").def("looks_changed", &Handle::looks_changed);
  nb::class_<Kind>(m, "Kind").def("__init__", [](Kind* kind, int64_t I, int64_t H, bool bias, bool norm, bool before, bool wide) {
    new (kind) Kind{I, H, bias, norm, before, wide};
  });
  nb::class_<More>(m, "More")
      .def(nb::init<>())
      .def_rw("lengths", &More::lengths)
      .def_rw("starts", &More::starts)
      .def_rw("resets", &More::resets)
      .def_rw("resets_step", &More::resets_step)
      .def_rw("resets_row", &More::resets_row)
      .def_rw("fresh", &More::fresh)
      .def_rw("mask", &More::mask)
      .def_rw("zone", &More::zone)
      .def_rw("zone_rate", &More::zone_rate)
      .def_rw("norms", &More::norms)
      .def_rw("d_saved", &More::d_saved)
      .def_rw("d_fresh", &More::d_fresh)
      .def_rw("again", &More::again);
  m.def("pack", [](const std::vector<Address>& weights, const Kind& kind, int threads) {
    nb::gil_scoped_release free;
    return (kind.wide ? keep<double> : keep<float>)(weights, kind, threads).release();
  }, nb::rv_policy::take_ownership);
  m.def("forward", [](Handle& handle, int64_t T, int64_t B, Address x, int64_t x_step, int64_t x_row, Address h_0, int64_t h_0_run,
                      int64_t h_0_row, Address output, Address h_n, Address saved, int64_t rows, Address batch_sizes,
                      const More& more, int threads) {
    nb::gil_scoped_release free;
    (handle.f32.empty() ? run_forward<double> : run_forward<float>)(handle, T, B, x, x_step, x_row, h_0, h_0_run, h_0_row,
                                                                    output, h_n, saved, rows, batch_sizes, more, threads);
  });
  m.def("forward_once", [](const std::vector<Address>& weights, const Kind& kind, int64_t T, int64_t B, Address x, int64_t x_step,
                           int64_t x_row, Address h_0, int64_t h_0_run, int64_t h_0_row, Address output, Address h_n,
                           Address saved, int64_t rows, Address batch_sizes, const More& more, int threads) {
    nb::gil_scoped_release free;
    Handle handle;  // training changes the weights before the next call: nothing is kept
    (kind.wide ? pack<double> : pack<float>)(handle, weights, kind, threads);
    (kind.wide ? run_forward<double> : run_forward<float>)(handle, T, B, x, x_step, x_row, h_0, h_0_run, h_0_row, output, h_n,
                                                           saved, rows, batch_sizes, more, threads);
  });
  m.def("step", [](const std::vector<Handle*>& layers, double zone_rate, int64_t B, Address x, int64_t x_row, Address h, int64_t h_layer, int64_t h_row,
                   Address y, Address h_n, int threads) {
    nb::gil_scoped_release free;
    (layers[0]->f32.empty() ? run_step<double> : run_step<float>)(layers, zone_rate, B, x, x_row, h, h_layer, h_row, y, h_n, threads);
  });
  nb::class_<QuickStep>(m, "QuickStep", nb::type_slots(QuickStep::slots))
      .def(nb::init<nb::list, const std::vector<std::pair<int64_t, Address>>&, nb::list, double, nb::object, nb::object,
                    nb::tuple, nb::object>())
      .def("__call__", &QuickStep::operator(), nb::arg().none(), nb::arg().none(), nb::arg());
  m.def("backward", [](const std::vector<Address>& weights, const Kind& kind, int64_t T, int64_t B, Address x, int64_t x_step,
                       int64_t x_row, Address h_0, int64_t h_0_run, int64_t h_0_row, Address output, Address saved, int64_t rows,
                       Address d_output, int64_t d_output_step, int64_t d_output_row, int64_t d_output_unit, Address d_h_n,
                       int64_t d_h_n_run, int64_t d_h_n_row, Address d_x, Address d_h_0, const std::vector<Address>& d_weights,
                       Address batch_sizes, const More& more, int threads) {
    nb::gil_scoped_release free;
    (kind.wide ? run_backward<double> : run_backward<float>)(
        weights, kind, T, B, x, x_step, x_row, h_0, h_0_run, h_0_row, output, saved, rows, d_output, d_output_step, d_output_row,
        d_output_unit, d_h_n, d_h_n_run, d_h_n_row, d_x, d_h_0, d_weights, batch_sizes, more, threads);
  });
  m.def("affine", [](bool wide, int64_t rows, int64_t I, int64_t O, Address x, int64_t x_row, Address w, Address b, Address y,
                     int threads) {
    std::optional<nb::gil_scoped_release> free;  // as in QuickStep
    if (rows * I * O > 100000) free.emplace();
    if (wide) affine<double>({at<double>(x), x_row, at<double>(w), at<double>(b), at<double>(y), rows, I, O}, threads);
    else affine<float>({at<float>(x), x_row, at<float>(w), at<float>(b), at<float>(y), rows, I, O}, threads);
  });
  m.def("isa_names", [] {
    std::vector<std::string> names;
    for (const char* const* name = isa_names(); *name; ++name) names.emplace_back(*name);
    return names;
  });
  m.def("isa_name", [] { return std::string(isa_name()); });
  m.def("set_isa", [](const std::string& name) { return set_isa(name.c_str()); });
  m.def("share_openmp", &share_openmp);
  m.def("peak_gflops", [](int threads, double seconds) {
    nb::gil_scoped_release free;
    return peak_gflops(threads, seconds);
  }, nb::arg("threads"), nb::arg("seconds") = 0.2);
}
