// What the kernels use of others, to be included before a unit switches its instruction set: of an inline function
// compiled for AVX-512 here and for any processor elsewhere, the linker could keep the former for everyone.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunks.h"
#include "kernels.h"
