// The step tier: a launch is one step, or one of its two products, for any cell and size.
#pragma once

#include "step_backward.cuh"
#include "step_forward.cuh"
