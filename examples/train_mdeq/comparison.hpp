// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include <deq/io/atomic_file.hpp>

#include "../support/csv.hpp"
#include "../support/interrupt.hpp"
#include "../support/progress.hpp"
#include "../support/table.hpp"
#include "contest.hpp"
#include "figures.hpp"
#include "output.hpp"

namespace examples {

/// Table 2 and Figure 2 of Nguyen and Mauch, for the methods asked for: each trains twice, with and
/// without unrolled pre-training. Writes table.md, accuracies.csv, cosines.csv and SVG figures.
template <deq::Backend B>
class Comparison {
 public:
  Comparison(const Options& options, const Dataset<B>& data)
      : options_(options), data_(data), side_by_side_(options, options.compare) {
    make_directory(options.out);
    if (options.recipe.pretrain_steps > 0) add_trial(true);
    add_trial(false);
  }

  /// Returns the exit code.
  int run() {
    std::printf("data       %s\nmodel      %s, batch %td, %lld epochs, %s solver\n",
                data_.name.c_str(), options_.model.c_str(), options_.recipe.batch,
                static_cast<long long>(options_.recipe.epochs), options_.solver.c_str());
    std::fflush(stdout);
    for (Trial& t : trials_) {
      if (interrupt_.requested()) break;
      t.contest = std::make_unique<Contest<B>>(t.options, data_, side_by_side_);
      while (!t.contest->finished() && !interrupt_.requested()) {
        t.contest->step();
        show_progress(t);
        if (t.contest->at_end_of_epoch() || interrupt_.requested()) write();
      }
    }
    bar_.clear();
    if (interrupt_.requested()) std::printf("interrupted: the results are those so far\n");
    std::printf("\n%s\n%s\nresults: %s\n", table().text().c_str(), notes().c_str(),
                options_.out.c_str());
    return interrupt_.exit_code();
  }

 private:
  /// All methods, with or without pre-training.
  struct Trial {
    std::string name;  ///< in the table and in file names
    std::string title;
    Options options;
    std::unique_ptr<Contest<B>> contest;  ///< once it has begun
  };

  void add_trial(bool pretrained) {
    trials_.push_back({pretrained ? "pretrained" : "scratch",
                       pretrained ? "with pre-training" : "without pre-training",
                       options_,
                       {}});
    if (!pretrained) trials_.back().options.recipe.pretrain_steps = 0;
    // Figures of an earlier comparison must not stand beside the results of this one.
    for (const char* kind : {"accuracy", "cosine"})
      std::filesystem::remove(figure_path(kind, trials_.back()));
  }

  std::filesystem::path figure_path(const std::string& kind, const Trial& t) const {
    return options_.out / (kind + '_' + t.name + ".svg");
  }

  void show_progress(const Trial& t) {
    const Contest<B>& c = *t.contest;
    if (c.at_end_of_epoch()) return;  // its sums have been taken
    Progress progress = training_progress(t.title, c.step_number(), c.steps(), c.steps_per_epoch(),
                                          c.reference().epoch);
    progress.fraction = (progress.fraction + static_cast<double>(&t - trials_.data())) /
                        static_cast<double>(trials_.size());
    bar_.update(progress);
  }

  Table table() const {
    std::vector<std::string> header = {"gradient", "speed-up", "images/s"};
    for (const Trial& t : trials_) header.push_back("accuracy % " + t.name);
    for (const Trial& t : trials_) header.push_back("cosine " + t.name);
    Table table(header);
    for (std::size_t i = 0; i < options_.compare.size(); ++i) {
      std::vector<std::string> row = {
          options_.compare[i], fixed(side_by_side_.speed_up(i), 2),
          fixed(static_cast<double>(options_.recipe.batch) / side_by_side_.seconds(i), 1)};
      for (const Trial& t : trials_) row.push_back(fixed(100 * last_accuracy(t, i), 1));
      for (const Trial& t : trials_) row.push_back(fixed(mean_cosine(t, i), 3));
      table.row(row);
    }
    return table;
  }

  /// What the numbers of the table are.
  std::string notes() const {
    const double n = static_cast<double>(data_.test.size());
    std::vector<std::string> notes = {
        "Data: " + data_.name + '.',
        "Speed-up: of a training pass over implicit; medians of interleaved passes on the same "
        "weights\n  and batch.",
        deq::message("Accuracy: on the test set after the last finished epoch of ",
                     options_.recipe.epochs, ", one seed; its standard error from ",
                     data_.test.size(), " images alone\n  is up to ",
                     fixed(100 * std::sqrt(0.25 / n), 1), '.'),
        "Cosine: of the gradient with implicit's (stem and f), on the weights of implicit's "
        "training;\n  mean of all measurements."};
    if (trials_.size() > 1)
      notes.push_back(deq::message("Pretrained: the first ", options_.recipe.pretrain_steps,
                                   " steps were unrolled, the same for all; scratch: none."));
    return "- " + join(notes, "\n- ") + '\n';
  }

  static double last_accuracy(const Trial& t, std::size_t i) {
    if (!t.contest || t.contest->contestants()[i].accuracies.empty()) return Progress::unknown;
    return t.contest->contestants()[i].accuracies.back();
  }
  static double mean_cosine(const Trial& t, std::size_t i) {
    if (!t.contest) return Progress::unknown;
    const std::vector<double>& all = t.contest->contestants()[i].cosines;
    return std::accumulate(all.begin(), all.end(), 0.0) / static_cast<double>(all.size());
  }

  /// Everything known so far.
  void write() const {
    deq::write_file_atomically(options_.out / "table.md", [&](std::ostream& out) {
      out << table().markdown() << '\n' << notes();
    });
    CsvLog accuracies(options_.out / "accuracies.csv",
                      {"epoch", "trial", "gradient", "seconds", "test_accuracy"});
    CsvLog cosines(options_.out / "cosines.csv", {"epoch", "trial", "gradient", "cosine"});
    for (const Trial& t : trials_) {
      if (!t.contest) continue;
      for (const typename Contest<B>::Contestant& c : t.contest->contestants()) {
        for (std::size_t k = 0; k < c.epochs.size(); ++k)
          accuracies.row(c.epochs[k], t.name, c.gradient, c.times[k], c.accuracies[k]);
        for (std::size_t k = 0; k < c.cosines.size(); ++k)
          cosines.row(t.contest->measured_at()[k], t.name, c.gradient, c.cosines[k]);
      }
      write_svg(figure_path("accuracy", t), accuracy_figure(*t.contest, t.title, data_.name));
      write_svg(figure_path("cosine", t), cosine_figure(*t.contest, t.title, data_.name));
    }
  }

  const Options& options_;
  const Dataset<B>& data_;
  SideBySide<B> side_by_side_;
  std::vector<Trial> trials_;
  InterruptGuard interrupt_;
  ProgressBar bar_;
};

}  // namespace examples
