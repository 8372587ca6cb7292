// The thin line between Python and the kernels: addresses and sizes go in, nothing comes out but what was written.
// Python checked everything (src/tidegate/ops/gru/native_cpu.py); the GIL is released while a kernel runs.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "gru.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
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

template <class Real>
Weights<Real> weights_of(const std::vector<Address>& list, size_t direction, bool bias, int64_t I, int64_t H) {
  const size_t each = bias ? 4 : 2, first = direction * each;
  return {at<Real>(list[first]), at<Real>(list[first + 1]), bias ? at<Real>(list[first + 2]) : nullptr,
          bias ? at<Real>(list[first + 3]) : nullptr, I, H};
}

template <class Real>
std::unique_ptr<Handle> pack(const std::vector<Address>& weights, bool bias, int64_t I, int64_t H, Reset reset, int threads) {
  auto handle = std::make_unique<Handle>();
  handle->I = I, handle->H = H, handle->reset = reset;
  for (size_t d = 0; d < weights.size() / (bias ? 4 : 2); ++d) {
    handle->all<Real>().push_back(std::make_unique<Packed<Real>>(weights_of<Real>(weights, d, bias, I, H), I, H, reset, threads));
    const size_t first = d * (bias ? 4 : 2);
    handle->sample(weights[first], 3 * H * I, sizeof(Real));
    handle->sample(weights[first + 1], 3 * H * H, sizeof(Real));
    for (size_t b = 2; bias && b < 4; ++b) handle->sample(weights[first + b], 3 * H, sizeof(Real));
  }
  return handle;
}

template <class Real>
void run_forward(Handle& handle, int64_t T, int64_t B, Address x, int64_t x_step, int64_t x_row, Address h_0, int64_t h_0_run,
                 int64_t h_0_row, Address output, Address h_n, Address saved, int64_t rows, Address batch_sizes, bool reverse,
                 int threads) {
  const Sizes sizes{T, B, handle.I, handle.H, at<int64_t>(batch_sizes), handle.reset, threads};
  const int64_t H = handle.H, gates = handle.reset == Reset::after ? 4 : 3;
  const auto& packed = handle.all<Real>();
  const int64_t D = static_cast<int64_t>(packed.size());
  Forward<Real> runs[2];
  for (int64_t d = 0; d < D; ++d) {
    runs[d] = {at<Real>(x), x_step, x_row, packed[d].get(), at<Real>(h_0, d * h_0_run), h_0_row, at<Real>(output, d * H), D * H,
               at<Real>(h_n, d * B * H), at<Real>(saved, d * rows * gates * H), d == 1 || reverse};
  }
  forward(sizes, runs, static_cast<int>(D));
}

template <class Real>
void run_backward(const std::vector<Address>& weights, bool bias, int64_t I, int64_t H, Reset reset, int64_t T, int64_t B, Address x,
                  int64_t x_step, int64_t x_row, Address h_0, int64_t h_0_run, int64_t h_0_row, Address output, Address saved,
                  int64_t rows, Address d_output, int64_t d_output_step, int64_t d_output_row, Address d_h_n,
                  int64_t d_h_n_run, int64_t d_h_n_row, Address d_x, Address d_h_0, const std::vector<Address>& d_weights,
                  Address batch_sizes, bool reverse, int threads) {
  const Sizes sizes{T, B, I, H, at<int64_t>(batch_sizes), reset, threads};
  const int64_t gates = reset == Reset::after ? 4 : 3;
  const size_t each = bias ? 4 : 2;
  const int64_t D = static_cast<int64_t>(weights.size() / each);
  Backward<Real> runs[2];
  for (int64_t d = 0; d < D; ++d) {
    const Address* d_w = d_weights.data() + static_cast<size_t>(d) * each;
    runs[d] = {at<Real>(x), x_step, x_row, weights_of<Real>(weights, static_cast<size_t>(d), bias, I, H), at<Real>(h_0, d * h_0_run),
               h_0_row, at<Real>(output, d * H), D * H, at<Real>(saved, d * rows * gates * H), at<Real>(d_output, d * H),
               d_output_step, d_output_row, at<Real>(d_h_n, d * d_h_n_run), d_h_n_row, d == 1 || reverse,
               at<Real>(d_x, d * rows * I), at<Real>(d_h_0, d * B * H), at<Real>(d_w[0]), at<Real>(d_w[1]),
               bias ? at<Real>(d_w[2]) : nullptr, bias ? at<Real>(d_w[3]) : nullptr};
  }
  backward(sizes, runs, static_cast<int>(D));
}

Reset reset_of(bool before) { return before ? Reset::before : Reset::after; }

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
  m.doc() = "The C++ kernels of the native back end. Takes addresses and checks nothing: use tidegate.ops.gru.native_cpu.";
  nb::class_<Handle>(m, "Handle").def("looks_changed", &Handle::looks_changed);
  m.def("pack", [](const std::vector<Address>& weights, bool bias, int64_t I, int64_t H, bool before, bool wide, int threads) {
    nb::gil_scoped_release free;
    return (wide ? pack<double> : pack<float>)(weights, bias, I, H, reset_of(before), threads).release();
  }, nb::rv_policy::take_ownership);
  m.def("forward", [](Handle& handle, int64_t T, int64_t B, Address x, int64_t x_step, int64_t x_row, Address h_0, int64_t h_0_run,
                      int64_t h_0_row, Address output, Address h_n, Address saved, int64_t rows, Address batch_sizes, bool reverse,
                      int threads) {
    nb::gil_scoped_release free;
    (handle.f32.empty() ? run_forward<double> : run_forward<float>)(handle, T, B, x, x_step, x_row, h_0, h_0_run, h_0_row,
                                                                    output, h_n, saved, rows, batch_sizes, reverse, threads);
  });
  m.def("backward", [](bool wide, const std::vector<Address>& weights, bool bias, int64_t I, int64_t H, bool before, int64_t T, int64_t B,
                       Address x, int64_t x_step, int64_t x_row, Address h_0, int64_t h_0_run, int64_t h_0_row, Address output,
                       Address saved, int64_t rows, Address d_output, int64_t d_output_step, int64_t d_output_row, Address d_h_n,
                       int64_t d_h_n_run, int64_t d_h_n_row, Address d_x, Address d_h_0, const std::vector<Address>& d_weights,
                       Address batch_sizes, bool reverse, int threads) {
    nb::gil_scoped_release free;
    (wide ? run_backward<double> : run_backward<float>)(weights, bias, I, H, reset_of(before), T, B, x, x_step, x_row, h_0, h_0_run,
                                                        h_0_row, output, saved, rows, d_output, d_output_step, d_output_row, d_h_n,
                                                        d_h_n_run, d_h_n_row, d_x, d_h_0, d_weights, batch_sizes, reverse, threads);
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
