// Sums over tokens.

#pragma once

#include <vector>

namespace fourierkv {

// Adds the sum of x's rows to `to` [D]; x: [n][D].
void AddFirstMoment(const float* x, int n, int dim, std::vector<double>* to);
// Adds x' x to `to` [D][D].
void AddSecondMoment(const float* x, int n, int dim, std::vector<double>* to);

}  // namespace fourierkv
