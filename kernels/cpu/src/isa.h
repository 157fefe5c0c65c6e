// Names of what this file exports: each file is compiled once for each instruction set.
#pragma once

#define OCTAVO_JOIN_(name, isa) name##_##isa
#define OCTAVO_JOIN(name, isa) OCTAVO_JOIN_(name, isa)

// Declares a function that Python calls as `library.function("name")`.
#define OCTAVO_EXPORT(name) extern "C" __attribute__((visibility("default"))) void OCTAVO_JOIN(name, OCTAVO_ISA)
