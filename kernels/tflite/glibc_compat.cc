// Binds the delegate's references to pthreads to the old versions of their
// symbols, and defines what libstdc++ has since GCC 11 only. The definitions
// here are for this shared library alone.
#include <new>

#include "kernels/glibc_symbol_version.h"

// The version script is not enough: the linker exports what a library that it
// links with refers to.
#define HIDDEN __attribute__((visibility("hidden")))

#if defined(__GLIBCXX__)
// std::__throw_bad_array_new_length(), which containers call where a size does
// not fit.
extern "C" {
[[noreturn]] HIDDEN void ThrowBadArrayNewLength() __asm__(
    "_ZSt28__throw_bad_array_new_lengthv");

void ThrowBadArrayNewLength() { throw std::bad_array_new_length(); }
}
#endif  // __GLIBCXX__

#ifdef OLD_GLIBC_VERSION

#include <pthread.h>
#include <signal.h>

extern "C" {

int OldPthreadCreate(pthread_t*, const pthread_attr_t*, void* (*)(void*),
                     void*);
int OldPthreadJoin(pthread_t, void**);
int OldPthreadSigmask(int, const sigset_t*, sigset_t*);
__asm__(".symver OldPthreadCreate, pthread_create@" OLD_GLIBC_VERSION);
__asm__(".symver OldPthreadJoin, pthread_join@" OLD_GLIBC_VERSION);
__asm__(".symver OldPthreadSigmask, pthread_sigmask@" OLD_GLIBC_VERSION);

HIDDEN int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                          void* (*start)(void*), void* argument) noexcept {
  return OldPthreadCreate(thread, attributes, start, argument);
}

HIDDEN int pthread_join(pthread_t thread, void** result) {
  return OldPthreadJoin(thread, result);
}

HIDDEN int pthread_sigmask(int how, const sigset_t* set,
                           sigset_t* old) noexcept {
  return OldPthreadSigmask(how, set, old);
}

}  // extern "C"

#endif  // OLD_GLIBC_VERSION
