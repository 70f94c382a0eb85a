// The module _C: facts about the build and the machine, the eager call of the operator conv, and what PackedConv2d
// asks.
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/extension.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/plan.h"
#include "explain.h"
#include "fingerprint.h"

namespace {

const at::Tensor& tensor(PyObject* object) { return THPVariable_Unpack(object); }
std::optional<at::Tensor> optional_tensor(PyObject* object) {
  return object == Py_None ? std::nullopt : std::make_optional(THPVariable_Unpack(object));
}

bool has_kernels(const at::Tensor& t) {
#ifdef WITH_CUDA
  if (t.is_cuda()) return true;
#endif
  return t.is_cpu();
}

// What keeps a call from the kernels, or has to see it: transforms, forward-mode derivatives, modes, recordings.
bool is_watched() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing() ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

// A list's or tuple's entries, or the object itself as one.
c10::ArrayRef<PyObject*> entries(PyObject* const& object) {
  if (!PyList_CheckExact(object) && !PyTuple_CheckExact(object)) return object;
  return {PySequence_Fast_ITEMS(object), static_cast<size_t>(PySequence_Fast_GET_SIZE(object))};
}

bool read(PyObject* object, int64_t least, int64_t& value) {
  int overflow = 0;
  if (!PyLong_CheckExact(object)) return false;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return !overflow && value >= least;
}

// One integer, or one for each of the `spatial` dimensions.
using Ints = c10::SmallVector<int64_t, 3>;
bool read(PyObject* object, int64_t least, int64_t spatial, Ints& values) {
  const auto all = entries(object);
  if (all.size() != 1 && int64_t(all.size()) != spatial) return false;
  values.resize(all.size());
  for (size_t i = 0; i < all.size(); ++i)
    if (!read(all[i], least, values[i])) return false;
  return true;
}

// One tensor, or 1 to kSources.
using Inputs = c10::SmallVector<at::Tensor, pw::kSources>;
bool read(PyObject* object, Inputs& inputs) {
  const auto all = entries(object);
  if (all.empty() || all.size() > pw::kSources || !std::all_of(all.begin(), all.end(), THPVariable_CheckExact))
    return false;
  for (PyObject* t : all) inputs.push_back(tensor(t));
  return true;
}

// conv(input, weight, bias, stride, padding, dilation, groups, activation, parsed, residual): pointwise_conv's common
// case, plain tensors and integers, through the dispatcher, but without Python's and torch.ops' reading of arguments,
// 3 us of 5, and 4 of 6 for two inputs. `parsed` maps activations to (name, alpha, beta). Returns NotImplemented for
// all others and for what is wrong, before anything is done: the caller knows more.
PyObject* conv(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 10, "_C.conv takes 10 arguments, got ", count);
  enum { input, weight, bias, stride, padding, dilation, groups, activation, parsed, residual };
  if (!THPVariable_CheckExact(args[weight])) Py_RETURN_NOTIMPLEMENTED;
  for (int i : {bias, residual})
    if (args[i] != Py_None && !THPVariable_CheckExact(args[i])) Py_RETURN_NOTIMPLEMENTED;
  const at::Tensor& w = tensor(args[weight]);
  Ints strides, paddings, dilations;
  int64_t group_count;
  if (!read(args[stride], 1, w.dim() - 2, strides) || !read(args[padding], 0, w.dim() - 2, paddings) ||
      !read(args[dilation], 1, w.dim() - 2, dilations) || !read(args[groups], 1, group_count))
    Py_RETURN_NOTIMPLEMENTED;
  PyObject* const known = PyDict_GetItemWithError(args[parsed], args[activation]);
  if (!known) {
    PyErr_Clear();  // unhashable
    Py_RETURN_NOTIMPLEMENTED;
  }
  if (!has_kernels(w) || is_watched()) Py_RETURN_NOTIMPLEMENTED;
  switch (w.scalar_type()) {
    case at::kFloat:
    case at::kDouble:
    case at::kHalf:
    case at::kBFloat16:
      break;
    default:
      Py_RETURN_NOTIMPLEMENTED;
  }
  Inputs inputs;
  if (!read(args[input], inputs)) Py_RETURN_NOTIMPLEMENTED;
  Py_ssize_t length = 0;
  const char* const name = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(known, 0), &length);
  const double alpha = PyFloat_AsDouble(PyTuple_GetItem(known, 1)), beta = PyFloat_AsDouble(PyTuple_GetItem(known, 2));
  if (PyErr_Occurred()) return nullptr;
  const auto b = optional_tensor(args[bias]), r = optional_tensor(args[residual]);
  at::Tensor y;
  {
    pybind11::gil_scoped_release no_gil;
    y = pw::call_conv(inputs, w, b, r, strides, paddings, group_count, c10::string_view(name, length), alpha, beta);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// weight_key(input, weight, bias, groups): what tells the weight of a larger convolution from others, where oneDNN may
// infer on a packed copy of it: it would be called by nn.Conv2d too, return channels_last, and nothing but the result
// matters. Else None. Every call of PackedConv2d asks, in 1 us: Python took 8.
PyObject* weight_key(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 4 && PyLong_Check(args[3]), "_C.weight_key takes three tensors and groups");
  for (int i : {0, 1, 2})
    if (!(i == 2 && args[i] == Py_None) && !THPVariable_CheckExact(args[i])) Py_RETURN_NONE;
  if (is_watched() || at::autocast::is_autocast_enabled(at::kCPU) || c10::impl::dispatch_mode_enabled() ||
      !at::globalContext().userEnabledMkldnn())
    Py_RETURN_NONE;
  const at::Tensor &x = tensor(args[0]), &weight = tensor(args[1]);
  const auto bias = optional_tensor(args[2]);
  const auto fits = [&](const at::Tensor& t) {
    return t.is_cpu() && t.layout() == at::kStrided && t.scalar_type() == x.scalar_type() &&
           !(at::GradMode::is_enabled() && t.requires_grad());
  };
  // Of one channel or pixel, or none, x has either format, and the weight's decides.
  if (!fits(x) || !fits(weight) || (bias && !fits(*bias)) || x.dim() != 4 || weight.dim() != 4 ||
      x.size(1) != weight.size(1) * PyLong_AsLongLong(args[3]) || !x.is_contiguous(at::MemoryFormat::ChannelsLast) ||
      x.is_contiguous())
    Py_RETURN_NONE;
  uint64_t key;
  {
    pybind11::gil_scoped_release no_gil;
    key = pw::fingerprint(weight);
  }
  return PyLong_FromUnsignedLongLong(key);
  END_HANDLE_TH_ERRORS
}

PyMethodDef kMethods[] = {
    {"conv", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(conv)), METH_FASTCALL,
     "conv(input, weight, bias, stride, padding, dilation, groups, activation, parsed, residual) of plain tensors and "
     "integers, or NotImplemented."},
    {"weight_key", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(weight_key)), METH_FASTCALL,
     "weight_key(input, weight, bias, groups): a number for the weight's contents where oneDNN may infer on a copy of "
     "it, or None."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  PyModule_AddFunctions(m.ptr(), kMethods);
  m.def(
      "cpu_capability", [] { return std::string(pw::cpu::kernels().name); },
      "The CPU kernels in use: the best this processor supports, or those named by POINTWISE_EXT_CPU.");
  m.def(
      "cpu_capabilities",
      [] {
        std::vector<std::pair<std::string, bool>> all;
        for (const auto* k = pw::cpu::all_kernels(); *k; ++k) all.emplace_back((*k)->name, (*k)->supported());
        return all;
      },
      "All CPU kernels of this build, best first, each with whether this processor supports it.");
  m.def(
      "explain",
      [](const std::vector<at::Tensor>& inputs, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
         const std::optional<at::Tensor>& residual, const std::vector<int64_t>& stride,
         const std::vector<int64_t>& padding, int64_t groups, const std::string& activation, double alpha,
         double beta) { return pw::explain_conv(PW_CONV_PASS); },
      "The plan of a call of the operator conv with these arguments, line by line; nothing is computed.");
  m.def(
      "predict_cuda",
      [](const std::vector<at::Tensor>& inputs, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
         const std::optional<at::Tensor>& residual, const std::vector<int64_t>& stride,
         const std::vector<int64_t>& padding, int64_t groups, const std::string& activation, double alpha, double beta,
         bool tf32, const std::vector<bool>& gradients) {
        std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, double, double, double>> rows;
        for (const pw::Prediction& p : pw::predict_cuda(PW_CONV_PASS, tf32, gradients))
          rows.emplace_back(p.kernel, p.m, p.n, p.k, p.blocks, p.memory, p.cache, p.microseconds);
        return rows;
      },
      "The launches that the CUDA plans make of a call or, where gradients (of each input, weight and bias) are "
      "wanted, of its backward pass, on tensors of any device, as (kernel, M, N, K, blocks, bytes of device memory, "
      "bytes read by tiles, microseconds predicted for an H200).");
  m.def("fingerprint", &pw::fingerprint, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "A number that tells a CPU tensor's contents from others, whatever wrote them.");
  m.def(
      "force_cpu_plan",
      [](int turned, int packed, int streamed, int dots, int at_once, int split, int chunked, int widened, int pieces,
         int vectors, int beside) {
        pw::cpu::forced = {turned, packed, streamed, dots, at_once, split, chunked, widened, pieces, vectors, beside};
      },
      pybind11::arg("turned") = -1, pybind11::arg("packed") = -1, pybind11::arg("streamed") = -1,
      pybind11::arg("dots") = -1, pybind11::arg("at_once") = -1, pybind11::arg("split") = -1,
      pybind11::arg("chunked") = -1, pybind11::arg("widened") = -1, pybind11::arg("pieces") = -1,
      pybind11::arg("vectors") = -1, pybind11::arg("beside") = -1,
      "For tests: decides parts of the CPU's plans (csrc/cpu/plan.h, Forced); without arguments the rules decide "
      "again.");
  m.def(
      "force_cuda_plan",
      [](int tile, int64_t splits, bool fma, int gate, int stays, int64_t blocks) {
        pw::forced_tuning = {};
        pw::forced_tuning.tile = tile, pw::forced_tuning.splits = splits, pw::forced_tuning.fma = fma;
        pw::forced_tuning.gate = gate, pw::forced_tuning.stays = stays;
        if (blocks) pw::forced_tuning.max_blocks = blocks;
      },
      pybind11::arg("tile") = -1, pybind11::arg("splits") = 0, pybind11::arg("fma") = false, pybind11::arg("gate") = -1,
      pybind11::arg("stays") = -1, pybind11::arg("blocks") = 0,
      "For tests: decides parts of the plans on a GPU (csrc/cuda/plan.h, Tuning); without arguments predictions decide "
      "again.");
  m.def(
      "has_cuda",
      [] {
#ifdef WITH_CUDA
        return true;
#else
        return false;
#endif
      },
      "Whether this build contains the CUDA kernels.");
}
