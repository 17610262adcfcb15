// The first version of glibc's symbols on this architecture.
//
// glibc 2.34 moved libpthread and libdl into libc and gave their symbols a new
// version. A library that is built with it and refers to OLD_GLIBC_VERSION
// instead loads on any glibc since 2.17; later ones keep the old versions, with
// the same behaviour. Not defined where nothing has to be done.
#ifndef KERNELS_GLIBC_SYMBOL_VERSION_H_
#define KERNELS_GLIBC_SYMBOL_VERSION_H_

#if defined(__linux__)
#include <features.h>
#endif

// In two steps: without glibc the macro __GLIBC_PREREQ does not exist.
#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 34)
#if defined(__x86_64__)
#define OLD_GLIBC_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define OLD_GLIBC_VERSION "GLIBC_2.17"
#endif
#endif
#endif

#endif  // KERNELS_GLIBC_SYMBOL_VERSION_H_
