// SPDX-License-Identifier: MIT
// The version, read by CMake as well.
#pragma once

#define DEQ_VERSION_MAJOR 0
#define DEQ_VERSION_MINOR 1
#define DEQ_VERSION_PATCH 0
