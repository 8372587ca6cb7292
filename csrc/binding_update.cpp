// The thin line between Python and what an update does beside the recurrence (update.h), as binding.cpp is to the layer.
// Python checked everything (src/tidegate/ops/update.py).

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "tensors.h"
#include "update.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tidegate {
namespace {

// Lets other threads of Python run where the work is long enough for that to pay.
struct FreeFor {
  std::optional<nb::gil_scoped_release> free;
  explicit FreeFor(int64_t values) {
    if (values > 100000) free.emplace();
  }
};

std::vector<Embedded> embedded(nb::handle weights, nb::handle rates, nb::handle d_weights, const std::vector<int64_t>& widths) {
  const std::vector<Address> weight = addresses_of(weights), rate = addresses_of(rates), d_weight = addresses_of(d_weights);
  std::vector<Embedded> columns;
  for (size_t k = 0; k < widths.size(); ++k) {
    columns.push_back({at<float>(weight[k]), rate.empty() ? nullptr : at<float>(rate[k]),
                       d_weight.empty() ? nullptr : at<float>(d_weight[k]), widths[k]});
  }
  return columns;
}

int64_t width_of(int64_t F, const std::vector<int64_t>& widths) {
  for (int64_t width : widths) F += width;
  return F;
}

}  // namespace

void bind_update(nb::module_& m) {
  m.def("cut", [](nb::handle starts, nb::handle lengths, nb::handle limits, nb::handle owners, int64_t T, int64_t B, int64_t F,
                  int64_t C, nb::handle numbers, nb::handle codes, nb::handle y, int64_t y_bytes, bool of_classes, int64_t missing,
                  nb::handle stretch, int64_t horizon, nb::handle numbers_to, nb::handle codes_to, nb::handle y_to) {
    const Cut c{at<int64_t>(address_of(starts)), at<int64_t>(address_of(lengths)), at<int64_t>(address_of(limits)),
                at<int64_t>(address_of(owners)), T, B, F, C, at<float>(address_of(numbers)), at<int64_t>(address_of(codes)),
                at<char>(address_of(y)), y_bytes, of_classes, missing, at<int64_t>(address_of(stretch)), horizon,
                at<float>(address_of(numbers_to)), at<int64_t>(address_of(codes_to)), at<char>(address_of(y_to))};
    const FreeFor free(T * B * (F + C));
    cut(c);
  }, nb::kw_only(), "starts"_a, "lengths"_a, "limits"_a, "owners"_a.none(), "T"_a, "B"_a, "F"_a, "C"_a, "numbers"_a, "codes"_a,
     "y"_a, "y_bytes"_a, "of_classes"_a, "missing"_a, "stretch"_a.none(), "horizon"_a, "numbers_to"_a, "codes_to"_a, "y_to"_a);
  m.def("scored_rows", [](nb::handle y, bool of_classes, int64_t rows, int64_t per_row, nb::handle to) {
    const Address from = address_of(y);
    int64_t* found = at<int64_t>(address_of(to));
    const Scored scored = of_classes ? scored_rows(at<int64_t>(from), rows, per_row, found)
                                     : scored_rows(at<float>(from), rows, per_row, found);
    return std::pair<int64_t, int64_t>(scored.rows, scored.targets);
  }, nb::kw_only(), "y"_a, "of_classes"_a, "rows"_a, "per_row"_a, "to"_a);
  m.def("encode", [](nb::handle numbers, nb::handle codes, int64_t rows, int64_t F, nb::handle weights, nb::handle rates,
                     const std::vector<int64_t>& widths, double dropout, uint64_t key, nb::handle to, nb::handle read,
                     int threads) {
    const std::vector<Embedded> columns = embedded(weights, rates, nb::make_tuple(), widths);
    const Encoder e{at<float>(address_of(numbers)), at<int64_t>(address_of(codes)), columns.data(), rows, F,
                    static_cast<int64_t>(widths.size()), width_of(F, widths), dropout, key};
    float* y = at<float>(address_of(to));
    int64_t* codes_read = at<int64_t>(address_of(read));
    const FreeFor free(rows * e.width);
    encode(e, y, codes_read, threads);
  }, nb::kw_only(), "numbers"_a, "codes"_a, "rows"_a, "F"_a, "weights"_a, "rates"_a, "widths"_a, "dropout"_a, "key"_a, "to"_a,
     "read"_a, "threads"_a);
  m.def("encode_backward", [](nb::handle d, nb::handle read, nb::handle before, int64_t rows, int64_t before_rows, int64_t F,
                              nb::handle weights, nb::handle d_weights, const std::vector<int64_t>& widths, double dropout,
                              uint64_t key) {
    const std::vector<Embedded> columns = embedded(weights, nb::make_tuple(), d_weights, widths);
    const Encoder e{nullptr, nullptr, columns.data(), rows, F, static_cast<int64_t>(widths.size()), width_of(F, widths), dropout,
                    key};
    const float* from = at<float>(address_of(d));
    const int64_t *codes = at<int64_t>(address_of(read)), *earlier = at<int64_t>(address_of(before));
    const FreeFor free(rows * e.width);
    encode_backward(e, from, codes, earlier, before_rows);
  }, nb::kw_only(), "d"_a, "read"_a, "before"_a.none(), "rows"_a, "before_rows"_a, "F"_a, "weights"_a, "d_weights"_a, "widths"_a,
     "dropout"_a, "key"_a);
  m.def("drop", [](nb::handle x, nb::handle rows, int64_t count, int64_t width, double rate, uint64_t key, nb::handle to,
                   int threads) {
    const Dropped d{at<int64_t>(address_of(rows)), count, width, rate, key};
    const float* from = at<float>(address_of(x));
    float* y = at<float>(address_of(to));
    const FreeFor free(count * width);
    drop(d, from, y, threads);
  }, nb::kw_only(), "x"_a, "rows"_a.none(), "count"_a, "width"_a, "rate"_a, "key"_a, "to"_a, "threads"_a);
  m.def("drop_backward", [](nb::handle d_y, nb::handle rows, int64_t count, int64_t all, int64_t width, double rate, uint64_t key,
                            nb::handle to, int threads) {
    const Dropped d{at<int64_t>(address_of(rows)), count, width, rate, key};
    const float* from = at<float>(address_of(d_y));
    float* d_x = at<float>(address_of(to));
    const FreeFor free(all * width);
    drop_backward(d, from, d_x, all, threads);
  }, nb::kw_only(), "d_y"_a, "rows"_a.none(), "count"_a, "all"_a, "width"_a, "rate"_a, "key"_a, "to"_a, "threads"_a);
  m.def("loss", [](int kind, nb::handle scores, nb::handle rows, nb::handle y, nb::handle class_weights, nb::handle numbers,
                   nb::handle residual, int64_t count, int64_t K, int64_t W, int64_t F, double scale, int threads) {
    const Scores s{static_cast<Loss>(kind), at<float>(address_of(scores)), at<int64_t>(address_of(rows)),
                   at<char>(address_of(y)), at<float>(address_of(class_weights)), at<float>(address_of(numbers)),
                   at<int64_t>(address_of(residual)), count, K, W, F, scale};
    const FreeFor free(count * K * W);
    std::vector<double> of_rows(static_cast<size_t>(count));
    return loss(s, of_rows.data(), threads);
  }, nb::kw_only(), "kind"_a, "scores"_a, "rows"_a, "y"_a, "class_weights"_a.none(), "numbers"_a.none(), "residual"_a.none(),
     "count"_a, "K"_a, "W"_a, "F"_a, "scale"_a, "threads"_a);
  m.def("adam", [](nb::handle weights, nb::handle first, nb::handle second, nb::handle gradients, const std::vector<int64_t>& sizes,
                   const std::vector<double>& steps, double lr, double beta1, double beta2, double eps, double weight_decay,
                   double clip, int threads) {
    const std::vector<Address> p = addresses_of(weights), m_1 = addresses_of(first), m_2 = addresses_of(second),
                               g = addresses_of(gradients);
    std::vector<Weights32> all;
    int64_t values = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      all.push_back({at<float>(p[i]), at<float>(m_1[i]), at<float>(m_2[i]), at<float>(g[i]), sizes[i], steps[i]});
      values += sizes[i];
    }
    const int64_t count = static_cast<int64_t>(all.size());
    const FreeFor free(values);
    std::vector<double> of_blocks(static_cast<size_t>(adam_blocks(all.data(), count)));
    adam({lr, beta1, beta2, eps, weight_decay, clip}, all.data(), count, of_blocks.data(), threads);
  }, nb::kw_only(), "weights"_a, "first"_a, "second"_a, "gradients"_a, "sizes"_a, "steps"_a, "lr"_a, "beta1"_a, "beta2"_a,
     "eps"_a, "weight_decay"_a, "clip"_a, "threads"_a);
}

}  // namespace tidegate
