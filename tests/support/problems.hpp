// SPDX-License-Identifier: MIT
// Root-finding problems F(x) = 0 that know their start and a solution: the 23 of SciML's
// NonlinearProblemLibrary (after Burkardt's test_nonlin and More, Garbow and Hillstrom, "Testing
// Unconstrained Optimization Software", 1981), those of scipy's test_nonlin, and those of jaxopt,
// optimistix, deq-jax and banax that are plain fixed points. Solutions that the sources do not give
// were computed with Newton's method in 40 digits.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include <deq/core/map.hpp>

namespace deq_test {

struct Problem {
  using Vector = std::vector<double>;

  std::string name;
  Vector start, solution;
  std::function<void(const Vector& x, Vector& F)> residual;
  /// max |F| at the printed solution stays below this: 0 where the solution is a number, else what
  /// the digits of the printed one allow.
  double digits = 0;

  std::size_t n() const { return start.size(); }
  Vector operator()(const Vector& x) const {
    Vector F(n());
    residual(x, F);
    return F;
  }
  /// max_i |F_i(x)|; NaN if any of them is one.
  double max_norm(const Vector& x) const {
    double norm = 0;
    for (const double Fi : (*this)(x))
      if (!(std::abs(Fi) <= norm)) norm = std::abs(Fi);
    return norm;
  }
};

/// A root-finding problem as a fixed-point map, f(z) = z + sign F(z), so that a solver's g = f - z
/// is F or -F: a method that begins with H = -I begins with B_0 = -I or +I for F.
template <class B>
class ProblemMap {
  using S = typename B::Scalar;

 public:
  using Backend = B;

  explicit ProblemMap(const Problem& problem, double sign = 1)
      : problem_(&problem), sign_(sign), x_(problem.n()), F_(problem.n()) {}

  deq::Index dim() const { return static_cast<deq::Index>(problem_->n()); }
  void evaluate(deq::Samples a, deq::BatchView<const S> z, deq::BatchView<S> out) {
    for (deq::Index j = 0; j < a.count; ++j) {
      std::copy(z[j].begin(), z[j].end(), x_.begin());
      problem_->residual(x_, F_);
      for (std::size_t i = 0; i < x_.size(); ++i)
        out.col(j)[i] = static_cast<S>(x_[i] + sign_ * F_[i]);
    }
  }

 private:
  const Problem* problem_;
  double sign_;
  Problem::Vector x_, F_;
};

namespace problem_detail {

using Vector = Problem::Vector;

inline Vector constant(std::size_t n, double value) { return Vector(n, value); }

template <class Entry>
Vector generate(std::size_t n, Entry entry) {
  Vector x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = entry(static_cast<double>(i + 1));
  return x;
}

inline double cube(double x) { return x * x * x; }
inline double square(double x) { return x * x; }

/// 9, 10: x_k at t_k = k / (n + 1), start t (t - 1).
inline Vector boundary_start() {
  return generate(10, [](double k) { return k / 11 * (k / 11 - 1); });
}

/// 10: the second sum begins at j = k + 1 in MGH, at j = k in the library.
inline void integral_equation(const Vector& x, Vector& F, bool second_from_k) {
  const std::size_t n = x.size();
  const double h = 1 / static_cast<double>(n + 1);
  for (std::size_t k = 1; k <= n; ++k) {
    const double tk = static_cast<double>(k) * h;
    double left = 0, right = 0;
    for (std::size_t j = 1; j <= n; ++j) {
      const double t = static_cast<double>(j) * h, w = cube(x[j - 1] + t + 1);
      if (j <= k) left += t * w;
      if (j > k || (second_from_k && j == k)) right += (1 - t) * w;
    }
    F[k - 1] = x[k - 1] + h * ((1 - tk) * left + tk * right) / 2;
  }
}

/// 23: the H-equation of radiative transfer, c = 0.9, with the nodes mu_i = (i - shift) / n.
inline void h_equation(const Vector& x, Vector& F, double shift) {
  const double n = static_cast<double>(x.size());
  const auto mu = [=](std::size_t i) { return (static_cast<double>(i + 1) - shift) / n; };
  for (std::size_t i = 0; i < x.size(); ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < x.size(); ++j) sum += mu(i) * x[j] / (mu(i) + mu(j));
    F[i] = x[i] - 1 / (1 - 0.9 / (2 * n) * sum);
  }
}

/// 6: the residuals of Watson's function. MGH weights the derivative by k - 1 and closes with the
/// gradients of x_1 and x_2 - x_1^2 - 1; the library weights by k and closes otherwise.
inline void watson(const Vector& x, Vector& F, bool library) {
  const std::size_t n = x.size();
  std::fill(F.begin(), F.end(), 0.0);
  const double shift = library ? 0 : 1;
  for (int i = 1; i <= 29; ++i) {
    const double t = i / 29.0;
    double derivative = 0, value = 0;
    for (std::size_t j = n; j-- > 1;)
      derivative = derivative * t + (static_cast<double>(j + 1) - shift) * x[j];
    for (std::size_t j = n; j-- > 0;) value = value * t + x[j];
    const double r = derivative - value * value - 1;
    double power = 1 / t;
    for (std::size_t k = 0; k < n; ++k, power *= t)
      F[k] += power * r * (static_cast<double>(k + 1) - shift - 2 * t * value);
  }
  if (library) {
    F[0] += x[0] * (3 - 2 * x[1] + 2 * x[0] * x[0]);
    F[1] += x[1] * (1 - x[1]) - 1;
  } else {
    F[0] += x[0] * (1 - 2 * (x[1] - x[0] * x[0] - 1));
    F[1] += x[1] - x[0] * x[0] - 1;
  }
}

/// 15, 16: X^2 = A, row-major, A = [1e-4 1 ...; 0 1e-4 ...; ...].
inline void matrix_square_root(const Vector& x, Vector& F, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < n; ++k) sum += x[i * n + k] * x[k * n + j];
      F[i * n + j] = sum - (i == j ? 1e-4 : (i == 0 && j == 1 ? 1 : 0));
    }
}

inline const Vector& boundary_solution() {
  static const Vector x{-0.043164982518765, -0.081577156535387, -0.11448571438053,
                        -0.14097357686260,  -0.15990869618198,  -0.16987720231277,
                        -0.16908998378121,  -0.15524953522183,  -0.12535589167893,
                        -0.075416533685892};
  return x;
}

}  // namespace problem_detail

/// Problems 1 to 23 as SciML's library defines them, in its order.
inline const std::vector<Problem>& library_problems() {
  using namespace problem_detail;
  using std::cos, std::sin, std::exp, std::sqrt;
  static const std::vector<Problem> problems{
      {"1 Rosenbrock chain",
       {-1.2, 1, 1, 1, 1, 1, 1, 1, 1, 1},
       constant(10, 1),
       [](const Vector& x, Vector& F) {
         F[0] = 1 - x[0];
         for (std::size_t k = 1; k < x.size(); ++k) F[k] = 10 * (x[k] - square(x[k - 1]));
       }},
      {"2 Powell singular",
       {3, -1, 0, 1},
       constant(4, 0),
       [](const Vector& x, Vector& F) {
         F[0] = x[0] + 10 * x[1];
         F[1] = sqrt(5.0) * (x[2] - x[3]);
         F[2] = square(x[1] - 2 * x[2]);
         F[3] = sqrt(10.0) * square(x[0] - x[3]);
       }},
      {"3 Powell badly scaled",
       {0, 1},
       {1.0981593297e-5, 9.1061467399},
       [](const Vector& x, Vector& F) {
         F[0] = 1e4 * x[0] * x[1] - 1;
         F[1] = exp(-x[0]) + exp(-x[1]) - 1.0001;
       },
       1e-9},
      {"4 Wood",
       {-3, -1, -3, -1},
       constant(4, 1),
       [](const Vector& x, Vector& F) {
         const double a = x[1] - square(x[0]), c = x[3] - square(x[2]);
         F[0] = -200 * x[0] * a - (1 - x[0]);
         F[1] = 200 * a + 20.2 * (x[1] - 1) + 19.8 * (x[3] - 1);
         F[2] = -180 * x[2] * c - (1 - x[2]);
         F[3] = 180 * c + 20.2 * (x[3] - 1) + 19.8 * (x[1] - 1);
       }},
      {"5 helical valley",
       {-1, 0, 0},
       {1, 0, 0},
       [](const Vector& x, Vector& F) {
         double turn = 0.25 * (x[1] > 0 ? 1 : x[1] < 0 ? -1 : 0);
         if (x[0] != 0) turn = std::atan(x[1] / x[0]) / (2 * std::numbers::pi);
         if (x[0] < 0) turn += 0.5;
         F[0] = 10 * (x[2] - 10 * turn);
         F[1] = 10 * (sqrt(square(x[0]) + square(x[1])) - 1);
         F[2] = x[2];
       }},
      {"6 Watson, the library's",
       {0, 0},
       {-0.24508899220293, 0.51754154452796},
       [](const Vector& x, Vector& F) { watson(x, F, true); },
       2e-11},
      {"7 Chebyquad",
       {0, 2.0 / 3},
       {-1 / std::numbers::sqrt3, 1 / std::numbers::sqrt3},
       [](const Vector& x, Vector& F) {
         const std::size_t n = x.size();
         std::fill(F.begin(), F.end(), 0.0);
         for (const double xj : x) {
           double before = 1, now = xj;
           for (std::size_t i = 0; i < n; ++i) {
             F[i] += now / static_cast<double>(n);
             before = std::exchange(now, 2 * xj * now - before);
           }
         }
         for (std::size_t i = 2; i <= n; i += 2)
           F[i - 1] += 1 / (square(static_cast<double>(i)) - 1);
       },
       1e-15},
      {"8 Brown almost linear", constant(10, 0.5), constant(10, 1),
       [](const Vector& x, Vector& F) {
         double sum = 0, product = 1;
         for (const double xj : x) {
           sum += xj;
           product *= xj;
         }
         for (std::size_t k = 0; k + 1 < x.size(); ++k)
           F[k] = x[k] + sum - static_cast<double>(x.size() + 1);
         F.back() = product - 1;
       }},
      {"9 discrete boundary value", boundary_start(), boundary_solution(),
       [](const Vector& x, Vector& F) {
         const std::size_t n = x.size();
         const double h = 1 / static_cast<double>(n + 1);
         for (std::size_t k = 0; k < n; ++k)
           F[k] = 2 * x[k] - (k > 0 ? x[k - 1] : 0) - (k + 1 < n ? x[k + 1] : 0) +
                  h * h * cube(x[k] + static_cast<double>(k + 1) * h + 1) / 2;
       },
       2e-14},
      {"10 discrete integral equation, the library's",
       boundary_start(),
       {-0.045974984328489, -0.087523846932867, -0.12389278397769, -0.15412774179882,
        -0.17699747732087, -0.19087563916077, -0.19355234179211, -0.18191721505650,
        -0.15139054397187, -0.094811867862984},
       [](const Vector& x, Vector& F) { integral_equation(x, F, true); },
       1e-14},
      {"11 trigonometric",
       constant(10, 0.1),
       {0.047911947303727, 0.049184518166637, 0.050608702894571, 0.052223049389788,
        0.054083092294859, 0.056273303466301, 0.058932138535341, 0.18639700138448, 0.15434196040114,
        0.12462537696307},
       [](const Vector& x, Vector& F) {
         double cosines = 0;
         for (const double xj : x) cosines += cos(xj);
         for (std::size_t k = 0; k < x.size(); ++k)
           F[k] = static_cast<double>(x.size()) - cosines +
                  static_cast<double>(k + 1) * (1 - cos(x[k])) - sin(x[k]);
       },
       2e-14},
      {"12 variably dimensioned", generate(10, [](double k) { return 1 - k / 10; }),
       constant(10, 1),
       [](const Vector& x, Vector& F) {
         double s = 0;
         for (std::size_t j = 0; j < x.size(); ++j) s += static_cast<double>(j + 1) * (x[j] - 1);
         for (std::size_t k = 0; k < x.size(); ++k)
           F[k] = x[k] - 1 + static_cast<double>(k + 1) * s * (1 + 2 * s * s);
       }},
      {"13 Broyden tridiagonal",
       constant(10, -1),
       {-0.57072213201122, -0.68180694998428, -0.70221007601766, -0.70551062989508,
        -0.70490615572874, -0.70149660702985, -0.69188932235480, -0.66579651440585,
        -0.59603510902637, -0.41641225752869},
       [](const Vector& x, Vector& F) {
         const std::size_t n = x.size();
         for (std::size_t k = 0; k < n; ++k)
           F[k] =
               (3 - 2 * x[k]) * x[k] + 1 - (k > 0 ? x[k - 1] : 0) - 2 * (k + 1 < n ? x[k + 1] : 0);
       },
       5e-14},
      {"14 Broyden banded",
       constant(10, -1),
       {-0.42830286358725, -0.47659642435629, -0.51965246364686, -0.55809932483218,
        -0.59250615682946, -0.62450368219947, -0.62323947144059, -0.62139384179657,
        -0.62045359665909, -0.58646927072044},
       [](const Vector& x, Vector& F) {
         const std::size_t n = x.size();
         for (std::size_t k = 0; k < n; ++k) {
           double sum = 0;
           for (std::size_t j = k < 5 ? 0 : k - 5; j <= std::min(k + 1, n - 1); ++j)
             if (j != k) sum += x[j] * (1 + x[j]);
           F[k] = x[k] * (2 + 5 * square(x[k])) + 1 - sum;
         }
       },
       1e-13},
      {"15 Hammarling 2 x 2 square root",
       {1, 0, 0, 1},
       {0.01, 50, 0, 0.01},
       [](const Vector& x, Vector& F) { matrix_square_root(x, F, 2); }},
      {"16 Hammarling 3 x 3 square root",
       {1, 0, 0, 0, 1, 0, 0, 0, 1},
       {0.01, 50, 0, 0, 0.01, 0, 0, 0, 0.01},
       [](const Vector& x, Vector& F) { matrix_square_root(x, F, 3); }},
      {"17 Dennis and Schnabel",
       {1, 5},
       {0, 3},
       [](const Vector& x, Vector& F) {
         F[0] = x[0] + x[1] - 3;
         F[1] = square(x[0]) + square(x[1]) - 9;
       }},
      {"18 sample problem 18",
       {2, 2},
       {0, 0},
       [](const Vector& x, Vector& F) {
         F[0] = x[0] != 0 ? square(x[1]) * (1 - exp(-square(x[0]))) / x[0] : 0;
         F[1] = x[1] != 0 ? x[0] * (1 - exp(-square(x[1]))) / x[1] : 0;
       }},
      {"19 sample problem 19",
       {3, 3},
       {0, 0},
       [](const Vector& x, Vector& F) {
         const double r = square(x[0]) + square(x[1]);
         F[0] = x[0] * r;
         F[1] = x[1] * r;
       }},
      {"20 scalar x (x - 5)^2",
       {1},
       {5},
       [](const Vector& x, Vector& F) { F[0] = x[0] * square(x[0] - 5); }},
      {"21 Freudenstein and Roth",
       {0.5, -2},
       {5, 4},
       [](const Vector& x, Vector& F) {
         const double y = x[1];
         F[0] = x[0] - cube(y) + 5 * square(y) - 2 * y - 13;
         F[1] = x[0] + cube(y) + square(y) - 14 * y - 29;
       }},
      {"22 Boggs",
       {1, 0},
       {0, 1},
       [](const Vector& x, Vector& F) {
         F[0] = square(x[0]) - x[1] + 1;
         F[1] = x[0] - cos(std::numbers::pi / 2 * x[1]);
       },
       1e-15},
      {"23 Chandrasekhar H, the library's",
       constant(10, 1),
       {1.1459899509817, 1.2587119025211, 1.3544177208815, 1.4385200983403, 1.5137765921168,
        1.5818950914839, 1.6440565620219, 1.7011356809588, 1.7538106144836, 1.8026243191696},
       [](const Vector& x, Vector& F) { h_equation(x, F, 0); },
       1e-13},
  };
  return problems;
}

/// Where the library departs from its sources: 6, 10 and 23 as the sources have them.
inline const std::vector<Problem>& source_variants() {
  using namespace problem_detail;
  static const std::vector<Problem> problems{
      {"6 Watson, n = 6, MGH",
       constant(6, 0),
       {-0.015725086401458, 1.0124348693691, -0.23299162595674, 1.2604300877996, -1.5137289227223,
        0.99299643243113},
       [](const Vector& x, Vector& F) { watson(x, F, false); },
       2e-11},
      {"10 discrete integral equation, MGH", boundary_start(), boundary_solution(),
       [](const Vector& x, Vector& F) { integral_equation(x, F, false); }, 1e-14},
      {"23 Chandrasekhar H, Kelley",
       constant(10, 1),
       {1.0967358168345, 1.2334840217224, 1.3423629130310, 1.4356463490494, 1.5178684864866,
        1.5914920868821, 1.6581057513927, 1.7188372512296, 1.7745363737393, 1.8258694825916},
       [](const Vector& x, Vector& F) { h_equation(x, F, 0.5); },
       1e-13},
  };
  return problems;
}

/// scipy's test_nonlin: F1 to F6, and F2 from zero. All begin with B_0 = -I.
inline const std::vector<Problem>& scipy_problems() {
  using namespace problem_detail;
  static const std::vector<Problem> problems{
      {"S1 diagonal with a cubic term", constant(5, 1), constant(5, 0),
       [](const Vector& x, Vector& F) {
         static constexpr double d[]{3, 2, 1.5, 1, 0.5};
         double xx = 0;
         for (const double xi : x) xx += xi * xi;
         for (std::size_t i = 0; i < x.size(); ++i) F[i] = -d[i] * x[i] - 0.01 * xx * x[i];
       }},
      {"S2 identity",
       {1, 2, 3, 4, 5, 6},
       constant(6, 0),
       [](const Vector& x, Vector& F) { F = x; }},
      {"S2b identity from zero", constant(6, 0), constant(6, 0),
       [](const Vector& x, Vector& F) { F = x; }},
      {"S3 tridiagonal",
       {1, 2, 3},
       {-2.5, -4, -3.5},
       [](const Vector& x, Vector& F) {
         F[0] = -2 * x[0] + x[1] - 1;
         F[1] = x[0] - 2 * x[1] + x[2] - 2;
         F[2] = x[1] - 2 * x[2] - 3;
       }},
      {"S4 Powell badly scaled",
       {-1, -2},
       library_problems()[2].solution,
       library_problems()[2].residual,
       1e-9},
      {"S5 pressure network",
       {2, 0, 2, 0},
       constant(4, 1),
       [](const Vector& x, Vector& F) {
         for (std::size_t i = 1; i < 4; ++i) F[i - 1] = (square(x[i]) - square(x[0])) / 2;
         F[3] = x[0] + x[1] + x[2] + x[3] - 4;
       }},
      {"S6 preconditioned 2 x 2",
       {-0.5, 1.4},
       {0, 1},
       [](const Vector& x, Vector& F) {
         const double v0 = (x[0] + 3) * (square(square(x[1])) * x[1] - 7) + 18;
         const double v1 = std::sin(x[1] * std::exp(x[0]) - 1);
         const double a = -4.256, b = 14.7, c = 0.8394989, d = 0.59964207;
         F[0] = -(d * v0 - b * v1) / (a * d - b * c);
         F[1] = -(a * v1 - c * v0) / (a * d - b * c);
       }},
  };
  return problems;
}

/// jaxopt (J), optimistix (O), deq-jax (D) and banax (B): F(z) = f(z) - z of fixed points.
inline const std::vector<Problem>& fixed_point_problems() {
  using namespace problem_detail;
  constexpr double cosine_root = 0.73908513321516;
  static const std::vector<Problem> problems{
      {"J1 slow diagonal",
       {1, 0.4, -0.2},
       constant(3, 0),
       [](const Vector& z, Vector& F) {
         static constexpr double d[]{0.9, 0.99, 0.999};
         for (std::size_t i = 0; i < 3; ++i) F[i] = d[i] * z[i] - z[i];
       }},
      {"J2 sine and cube",
       {0.6, 0, -0.1, 0.7, 0.5},
       constant(5, 0),
       [](const Vector& z, Vector& F) {
         for (std::size_t i = 0; i < 5; ++i)
           F[i] = (i < 3 ? std::sin(z[i]) * square(z[i]) : cube(z[i])) - z[i];
       }},
      {"J3 cosine with a shift",
       {0.3, std::numbers::pi / 4},
       {cosine_root, std::numbers::pi / 2},
       [](const Vector& z, Vector& F) {
         F[0] = std::cos(z[0]) - z[0];
         F[1] = std::cos(z[1]) + std::numbers::pi / 2 - z[1];
       },
       2e-14},
      {"J9 scalar affine",
       {0},
       {1},
       [](const Vector& z, Vector& F) { F[0] = 0.5 * z[0] + 0.5 - z[0]; }},
      {"O2 cosine",
       {0.5},
       {cosine_root},
       [](const Vector& z, Vector& F) { F[0] = std::cos(z[0]) - z[0]; },
       2e-14},
      {"D1 expanding affine", constant(6, 1), constant(6, 1.0 / 3),
       [](const Vector& z, Vector& F) {
         for (std::size_t i = 0; i < 6; ++i) F[i] = -2 * z[i] + 1 - z[i];
       },
       1e-15},
      {"D2 matrix of ones", constant(3, 2), constant(3, -0.5),
       [](const Vector& z, Vector& F) {
         for (std::size_t i = 0; i < 3; ++i) F[i] = z[0] + z[1] + z[2] + 1 - z[i];
       }},
      {"B1 scalar affine",
       {0},
       {2},
       [](const Vector& z, Vector& F) { F[0] = 0.5 * z[0] + 1 - z[0]; }},
      {"B2 antidiagonal",
       {0, 0},
       {1.6, 2.4},
       [](const Vector& z, Vector& F) {
         F[0] = 0.25 * z[1] + 1 - z[0];
         F[1] = 0.25 * z[0] + 2 - z[1];
       },
       1e-15},
  };
  return problems;
}

}  // namespace deq_test
