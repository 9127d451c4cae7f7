// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>

#include "../support/svg_plot.hpp"
#include "contest.hpp"

namespace examples {

namespace detail {

/// The same colour for a method in every figure.
inline int colour_of(const std::string& gradient) {
  return static_cast<int>(std::find(gradient_names.begin(), gradient_names.end(), gradient) -
                          gradient_names.begin());
}

}  // namespace detail

/// Test accuracy over the time that each method has trained.
template <deq::Backend B>
Plot accuracy_figure(const Contest<B>& contest, const std::string& trial, const std::string& data) {
  Plot plot{.title = "Test accuracy over training time, " + trial,
            .subtitle = data + ". Each method's own time.",
            .x_label = "training time (s)",
            .y_label = "test accuracy (%)"};
  for (const typename Contest<B>::Contestant& c : contest.contestants()) {
    Series series{c.gradient, c.times, c.accuracies, detail::colour_of(c.gradient)};
    for (double& y : series.y) y *= 100;
    plot.series.push_back(series);
  }
  return plot;
}

/// Cosine of each gradient with implicit's over the epochs: Figure 2 of Nguyen and Mauch.
template <deq::Backend B>
Plot cosine_figure(const Contest<B>& contest, const std::string& trial, const std::string& data) {
  Plot plot{.title = "Cosine with the gradient of implicit, " + trial,
            .subtitle = data + ". On implicit's weights.",
            .x_label = "epoch",
            .y_label = "cosine similarity",
            .y_include = {1}};
  for (const typename Contest<B>::Contestant& c : contest.contestants())
    if (c.gradient != "implicit")
      plot.series.push_back(
          {c.gradient, contest.measured_at(), c.cosines, detail::colour_of(c.gradient)});
  return plot;
}

}  // namespace examples
