// The plan of a call of the operator conv, one line for each launch or parallel region; nothing is computed.
#pragma once
#include <string>
#include <vector>

#include "ops.h"

namespace pw {

std::vector<std::string> explain_conv(PW_CONV_ARGS);

}  // namespace pw
