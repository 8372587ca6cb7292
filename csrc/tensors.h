// Tensors of Python as the bindings see them: objects of which some attributes are known, and where they lie.

#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

namespace tidegate {

namespace nb = nanobind;

using Address = uintptr_t;

template <class Real>
Real* at(Address address, int64_t values = 0) {
  return address ? reinterpret_cast<Real*>(address) + values : nullptr;
}

void bind_update(nb::module_& m);  // binding_update.cpp

inline PyObject* checked(PyObject* result) {
  if (!result) throw nb::python_error();
  return result;
}
inline nb::object name(const char* text) { return nb::steal(checked(PyUnicode_InternFromString(text))); }
inline nb::object get(nb::handle object, nb::handle attribute) {
  return nb::steal(checked(PyObject_GetAttr(object.ptr(), attribute.ptr())));
}
inline nb::object call(nb::handle object, nb::handle method) {
  return nb::steal(checked(PyObject_CallMethodNoArgs(object.ptr(), method.ptr())));
}
inline int64_t integer(nb::handle value) {
  const int64_t result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw nb::python_error();
  return result;
}

// Where a contiguous tensor lies; 0 for None.
inline Address address_of(nb::handle tensor) {
  static PyObject* const data_ptr = name("data_ptr").release().ptr();  // (never freed: Python may be gone before us)
  return tensor.is_none() ? 0 : static_cast<Address>(integer(call(tensor, data_ptr)));
}

inline std::vector<Address> addresses_of(nb::handle tensors) {
  std::vector<Address> addresses;
  addresses.reserve(8);
  for (nb::handle tensor : tensors) addresses.push_back(address_of(tensor));
  return addresses;
}

}  // namespace tidegate
