// SPDX-License-Identifier: MIT
#pragma once

#include <signal.h>
#include <unistd.h>

namespace examples {

/// While an object of this class lives, the first Ctrl-C (SIGINT) or SIGTERM only raises a flag, so
/// that the program can save its work; the second one ends the program at once. POSIX.
class InterruptGuard {
 public:
  InterruptGuard() {
    received_ = 0;
    struct sigaction action = {};
    action.sa_handler = [](int signal) {
      if (received_ != 0) ::_exit(128 + signal);
      received_ = signal;
    };
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGINT, &action, &old_interrupt_);
    ::sigaction(SIGTERM, &action, &old_terminate_);
  }
  ~InterruptGuard() {
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool requested() const { return received_ != 0; }
  /// What a shell expects of a program that a signal has ended: 128 + its number; 0 without one.
  int exit_code() const { return received_ ? 128 + received_ : 0; }

 private:
  static inline volatile sig_atomic_t received_ = 0;
  struct sigaction old_interrupt_ = {}, old_terminate_ = {};
};

}  // namespace examples
