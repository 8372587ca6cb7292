// Chooses the instruction set, allocates the scratch of a call, and hands it to that set's kernels.

#include "gru.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "team.h"

#if defined(TIDEGATE_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tidegate {
namespace {

constexpr std::align_val_t cache_line{64};

template <class Real>
struct Free {
  void operator()(Real* memory) const { ::operator delete(memory, cache_line); }
};
template <class Real>
using Memory = std::unique_ptr<Real[], Free<Real>>;

template <class Real>
Memory<Real> allocate(int64_t values) {
  return Memory<Real>(
      static_cast<Real*>(::operator new(sizeof(Real) * static_cast<size_t>(values > 0 ? values : 1), cache_line)));
}

// An instruction set: what its name stands for.
struct Isa {
  const char* name;
  const Kernels* kernels;
  const KernelsOfBf16* bf16_kernels;
  const RecurrenceOf<int8_t>* i8;
};
constexpr int most_isas = 6;  // with the null at the end

// Whether this process may use the matrix unit: Linux wants to be asked, as its registers take 8 KiB of every thread.
bool may_use_amx() {
#if defined(TIDEGATE_X86) && defined(TIDEGATE_AMX) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}

const Isa* all_isas() {
  static Isa found[most_isas] = {};
  static const bool done = [] {
    int n = 0;
#if defined(TIDEGATE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw")) {
      const auto* i8 = &kernels_avx512.i8;
#if defined(TIDEGATE_ALL_SETS)
      if (__builtin_cpu_supports("avx512vnni")) i8 = &i8_of_avx512_vnni;  // of the same bits
#endif
#if defined(TIDEGATE_AMX)
      if (__builtin_cpu_supports("avx512bf16") && may_use_amx()) {
        found[n++] = {"avx512_amx", &kernels_avx512, &bf16_of_avx512_amx, i8};
      }
#endif
#if defined(TIDEGATE_ALL_SETS)
      const bool products = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
      const Isa by_products{"avx512_bf16", &kernels_avx512, &bf16_of_avx512_bf16, i8};
      // Intel's take longer for a product of bfloat16 pairs than for two of float32 (measured: 4 times on Emerald Rapids); AMD's don't.
      const bool last = __builtin_cpu_is("intel");
      if (products && !last) found[n++] = by_products;
#endif
      found[n] = {"avx512", &kernels_avx512, &bf16_of_avx512, n == 0 ? i8 : &kernels_avx512.i8};
      ++n;
#if defined(TIDEGATE_ALL_SETS)
      if (products && last) found[n++] = by_products;
#endif
    }
#if defined(TIDEGATE_ALL_SETS)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found[n++] = {"avx2", &kernels_avx2, &bf16_of_avx2, &kernels_avx2.i8};
    }
#endif
#endif
#if defined(TIDEGATE_NEON_BF16)
    constexpr unsigned long dot_products = 1 << 14;  // HWCAP2_BF16
    if (getauxval(AT_HWCAP2) & dot_products) {
      found[n++] = {"neon_bf16", &kernels_baseline, &bf16_of_neon_bf16, &kernels_baseline.i8};
    }
#endif
    found[n++] = {"baseline", &kernels_baseline, &bf16_of_baseline, &kernels_baseline.i8};
    return true;
  }();
  static_cast<void>(done);
  return found;
}

const Isa* by_name(const char* name) {
  for (const Isa* isa = all_isas(); isa->name; ++isa) {
    if (std::strcmp(isa->name, name) == 0) return isa;
  }
  return nullptr;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa{[] {
    const char* asked = std::getenv("TIDEGATE_ISA");
    const Isa* named = asked ? by_name(asked) : nullptr;  // a wrong name is Python's to complain about
    return named ? named : all_isas();
  }()};
  return isa;
}

template <class Real>
const KernelsOf<Real>& of(const Isa& isa) {
  if constexpr (sizeof(Real) == 4) return isa.kernels->f32;
  else return isa.kernels->f64;
}
template <class Stored>
const RecurrenceOf<Stored>& recurrence_of(const Isa& isa) {
  if constexpr (sizeof(Stored) == 1) return *isa.i8;
  else if constexpr (sizeof(Stored) == 2) return *isa.bf16_kernels;
  else return of<Stored>(isa);
}

// The rows of a call, in the order in which the kernels work: the longest sequences first.
class Rows {
 public:
  explicit Rows(const Sizes& given) : sizes(given), plan{} {
    plan.rows = given.T * given.B;
    if (given.lengths) sort();
    if (sizes.batch_sizes) add_up();
    if (given.lengths) number();
  }
  Rows(const Rows&) = delete;

  Sizes sizes;
  Plan plan;

 private:
  std::vector<int64_t> batch_sizes_, offsets_, order_, origin_, numbers_;

  void sort() {  // by counting: `above[l]` sequences are longer than l
    const int64_t B = sizes.B, *lengths = sizes.lengths;
    int64_t longest = 0;
    for (int64_t b = 0; b < B; ++b) longest = lengths[b] > longest ? lengths[b] : longest;
    std::vector<int64_t> above(static_cast<size_t>(longest) + 1, 0);
    for (int64_t b = 0; b < B; ++b) {
      if (lengths[b] > 0) ++above[lengths[b] - 1];
    }
    for (int64_t t = longest - 1; t >= 0; --t) above[t] += above[t + 1];
    batch_sizes_.assign(above.begin(), above.end() - 1);
    order_.resize(B), origin_.resize(B);
    for (int64_t b = 0; b < B; ++b) {
      const int64_t place = above[lengths[b]]++;
      order_[place] = b;
      origin_[place] = sizes.starts ? sizes.starts[b] : b;
    }
    sizes.T = longest, sizes.batch_sizes = batch_sizes_.data();
    plan.order = order_.data(), plan.origin = origin_.data(), plan.row_step = sizes.starts ? 1 : B;
  }

  void add_up() {
    int64_t sum = 0;
    offsets_.reserve(static_cast<size_t>(sizes.T));
    for (int64_t t = 0; t < sizes.T; ++t) offsets_.push_back(sum), sum += sizes.batch_sizes[t];
    plan.offsets = offsets_.data(), plan.rows = sum;
  }

  void number() {
    numbers_.reserve(static_cast<size_t>(plan.rows));
    for (int64_t t = 0; t < sizes.T; ++t) {
      for (int64_t b = 0; b < sizes.batch_sizes[t]; ++b) numbers_.push_back(origin_[b] + t * plan.row_step);
    }
    plan.numbers = numbers_.data();
  }
};

template <class Real>
void zero(Real* values, int64_t n) {
  if (values && n > 0) std::memset(values, 0, sizeof(Real) * static_cast<size_t>(n));
}

// A state of zeros, for states that nobody gave: one row that stands for all.
template <class Real>
struct Zeros {
  Memory<Real> row;

  void stand_in(const Real*& state, int64_t& state_row, int64_t H) {
    if (state) return;
    if (!row) {
      row = allocate<Real>(H);
      zero(row.get(), H);
    }
    state = row.get(), state_row = 0;
  }
  template <class Run>
  void stand_in(Run& run, int64_t H) {
    stand_in(run.h_0, run.h_0_row, H);
    if (run.extras.resets) stand_in(run.extras.fresh, run.extras.fresh_row, H);
  }
};

}  // namespace

template <class Stored>
Packed<Stored>::Packed(const Weights<Sum<Stored>>& weights, int64_t I, int64_t H, Reset reset, bool norm, int threads) {
  const Isa* which = chosen().load();
  const auto& k = recurrence_of<Stored>(*which);
  auto packed = allocate<Stored>(k.packed_size(I, H, reset, norm));
  biases = allocate<Sum<Stored>>(k.biases_size(H, norm)).release();
  memory = packed.release(), isa = which;
  k.pack(weights, I, H, reset, norm, threads, memory, biases);
}

template <class Stored>
Packed<Stored>::~Packed() {
  Free<Stored>()(memory);
  Free<Sum<Stored>>()(biases);
}

template <class Stored>
void forward(const Sizes& given_sizes, const Forward<Stored>* given, int directions) {
  const Rows rows(given_sizes);
  const Sizes& sizes = rows.sizes;
  Forward<Stored> runs[2];
  Zeros<Sum<Stored>> zeros;
  for (int i = 0; i < directions; ++i) {
    runs[i] = given[i];
    zeros.stand_in(runs[i], sizes.H);
    runs[i].weights->turn.fetch_add(sizes.T, std::memory_order_relaxed);
  }
  const auto& k = recurrence_of<Stored>(*static_cast<const Isa*>(given[0].weights->isa));
  const int threads = k.forward_threads(sizes, rows.plan, directions);
  const int64_t each = k.forward_scratch(sizes);
  const auto scratch = allocate<Sum<Stored>>(each * threads);
  k.forward(sizes, rows.plan, runs, directions, threads, scratch.get(), each);
}

template <class Stored>
void backward(const Sizes& given_sizes, const Backward<Stored>* given, int directions) {
  using Real = Sum<Stored>;
  const Rows rows(given_sizes);
  const Sizes& sizes = rows.sizes;
  Backward<Stored> runs[2];
  Zeros<Real> zeros;
  for (int i = 0; i < directions; ++i) runs[i] = given[i], zeros.stand_in(runs[i], sizes.H);
  const bool again = !given[0].saved && given[0].packed;
  // Weights that were packed for another instruction set can be read by its kernels alone.
  const auto& k = recurrence_of<Stored>(*(again ? static_cast<const Isa*>(given[0].packed->isa) : chosen().load()));
  const int threads = k.backward_threads(sizes, rows.plan, directions);
  const int64_t each = k.backward_scratch(sizes, runs, directions);
  const int64_t own_each = k.backward_own_scratch(sizes, again);
  const auto scratch = allocate<Real>(each * directions), own = allocate<Real>(own_each * threads);
  if (sizes.T == 0 || sizes.B == 0) {  // no chunk of steps will write the sums
    for (int i = 0; i < directions; ++i) {
      zero(runs[i].d_w_ih, 3 * sizes.H * sizes.I);
      zero(runs[i].d_w_hh, 3 * sizes.H * sizes.H);
      for (Real* d : {runs[i].d_b_ih, runs[i].d_b_hh, runs[i].d_g_ih, runs[i].d_g_hh}) zero(d, 3 * sizes.H);
    }
    if (sizes.B == 0) return;
  }
  k.backward(sizes, rows.plan, runs, directions, threads, scratch.get(), each, own.get(), own_each);
}

template <class Real>
void activations(const Real* x, Real* sigmoid, Real* tanh, int64_t n) {
  of<Real>(*chosen().load()).activations(x, sigmoid, tanh, n);
}

template <class Real>
void affine(const Affine<Real>& job, int threads) {
  of<Real>(*chosen().load()).affine(job, threads);
}

namespace {

template <class Real>
void multiply(const Matrices<Real>& product, int threads) {
  const auto& k = of<Real>(*chosen().load());
  const auto scratch = allocate<Real>(k.product_scratch(product.M, product.N, product.K));
  k.product(product, threads, scratch.get());
}

}  // namespace

template <class Real>
void affine_in_blocks(const Affine<Real>& job, int threads) {
  if (job.O <= 2) return affine(job, threads);  // a block would be empty for the most part
  multiply<Real>({job.x, job.w, job.b, job.x_row, 1, 1, job.I, job.y, nullptr, job.rows, job.O, job.I, false}, threads);
}

template <class Real>
void affine_backward(const AffineBackward<Real>& job, int threads) {
  const int64_t rows = job.rows, I = job.I, O = job.O;
  if (job.d_x) multiply<Real>({job.d_y, job.w, nullptr, O, 1, I, 1, job.d_x, nullptr, rows, I, O, false}, threads);
  if (job.d_w || job.d_b) multiply<Real>({job.d_y, job.x, nullptr, 1, O, I, 1, job.d_w, job.d_b, O, I, rows, true}, threads);
}

namespace {

// Calls take(first, step, from, n) for runs of n lines that lie `step` values apart; they are lines number `from` and on.
template <class Take>
void each_run(const Matrix& m, const Take& take) {
  int64_t row = 0, column = 0, left = m.columns;
  for (int64_t from = 0; from < m.lines();) {
    int64_t n = m.lines() - from;
    for (int64_t most : {m.rows - row, m.columns - column, left}) n = most < n ? most : n;
    take(row * m.columns + column, m.columns + 1, from, n);
    from += n, row = (row + n) % m.rows, column = (column + n) % m.columns, left -= n;
    if (left == 0) left = m.columns, column = (column + 3) % m.columns;  // not the same diagonal of every gate
  }
}

template <class Value>
void copy_lines_of(const Matrix& m, Value* to) {
  const Value* values = static_cast<const Value*>(m.at);
  each_run(m, [=](int64_t first, int64_t step, int64_t from, int64_t n) {
    for (int64_t k = 0; k < n; ++k) to[from + k] = values[first + k * step];
  });
}

template <class Value>
bool lines_of_differ(const Matrix& m, const Value* then) {
  const Value* values = static_cast<const Value*>(m.at);
  Value difference = 0;
  each_run(m, [&](int64_t first, int64_t step, int64_t from, int64_t n) {
    const Value *now = values + first, *was = then + from;
    Value d = 0;
    for (int64_t k = 0; k < n; ++k) d |= now[k * step] ^ was[k];
    difference |= d;
  });
  return difference != 0;
}

}  // namespace

void copy_lines(const Matrix& m, void* to) {
  if (m.columns == 1) std::memcpy(to, m.at, static_cast<size_t>(m.bytes()));
  else if (m.value_bytes == 4) copy_lines_of(m, static_cast<uint32_t*>(to));
  else copy_lines_of(m, static_cast<uint64_t*>(to));
}

bool lines_differ(const Matrix& m, const void* then) {
  if (m.columns == 1) return std::memcmp(then, m.at, static_cast<size_t>(m.bytes())) != 0;
  if (m.value_bytes == 4) return lines_of_differ(m, static_cast<const uint32_t*>(then));
  return lines_of_differ(m, static_cast<const uint64_t*>(then));
}

void digest(const void* memory, int64_t bytes, Digest& d) { chosen().load()->kernels->digest(memory, bytes, d); }

const char* const* isa_names() {
  static const char* names[most_isas] = {};
  int n = 0;
  for (const Isa* isa = all_isas(); isa->name; ++isa) names[n++] = isa->name;
  return names;
}

const char* isa_name() { return chosen().load()->name; }

bool set_isa(const char* name) {
  const Isa* isa = by_name(name);
  if (isa) chosen().store(isa);
  return isa != nullptr;
}

double peak_gflops(int threads, double seconds) {
  struct Burn {
    const Kernels* kernels;
    double seconds;
    std::atomic<double> rate;
  } burn{chosen().load()->kernels, seconds, 0};
  run_pieces(
      threads, threads,
      [](void* context, int, int) {
        using Clock = std::chrono::steady_clock;
        auto& b = *static_cast<Burn*>(context);
        float out = 0;
        double operations = 0;
        const auto start = Clock::now();
        double took = 0;
        while (took < b.seconds) {
          operations += b.kernels->burn(100000, &out);
          took = std::chrono::duration<double>(Clock::now() - start).count();
        }
        double before = b.rate.load();
        while (!b.rate.compare_exchange_weak(before, before + operations / took / 1e9)) {
        }
      },
      &burn);
  return burn.rate.load();
}

template class Packed<float>;
template class Packed<double>;
template class Packed<bf16>;
template class Packed<int8_t>;
template void forward(const Sizes&, const Forward<float>*, int);
template void forward(const Sizes&, const Forward<double>*, int);
template void forward(const Sizes&, const Forward<bf16>*, int);
template void forward(const Sizes&, const Forward<int8_t>*, int);
template void backward(const Sizes&, const Backward<float>*, int);
template void backward(const Sizes&, const Backward<double>*, int);
template void backward(const Sizes&, const Backward<bf16>*, int);
template void affine(const Affine<float>&, int);
template void affine(const Affine<double>&, int);
template void affine_in_blocks(const Affine<float>&, int);
template void affine_in_blocks(const Affine<double>&, int);
template void affine_backward(const AffineBackward<float>&, int);
template void affine_backward(const AffineBackward<double>&, int);
template void activations(const float*, float*, float*, int64_t);
template void activations(const double*, double*, double*, int64_t);

}  // namespace tidegate
