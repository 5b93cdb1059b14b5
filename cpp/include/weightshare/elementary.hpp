#pragma once

#include <span>

namespace weightshare::elementary {

/// Elementary functions in float64 that are the same bits on every machine: they are made of + - * / and
/// sqrt alone, and off by less than 2 units in the last place everywhere.
///
/// NaN gives NaN; so do a negative log, an infinite sine or cosine, an acos outside [-1, 1]. exp overflows
/// to infinity and goes through the subnormal numbers to 0; log(0) is minus infinity.
double exp(double x);
double log(double x);
double sin(double x);
double cos(double x);
double acos(double x);

/// The same for every number of a span, in place, a vector at a time.
void exp(std::span<double> x);
void log(std::span<double> x);

}  // namespace weightshare::elementary
