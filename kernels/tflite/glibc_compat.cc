// Lets the delegate, built where pthreads are in libc (glibc 2.34 and later),
// load on any glibc since 2.17: references to functions whose symbols got a new
// version in that move are bound to the old version, which has the same
// behaviour. The definitions here are for this shared library alone.
#include <features.h>

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)

#include <pthread.h>
#include <signal.h>

#if defined(__x86_64__)
#define OLD_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define OLD_VERSION "GLIBC_2.17"
#endif

#ifdef OLD_VERSION

// The version script is not enough: the linker exports what a library that it
// links with refers to.
#define HIDDEN __attribute__((visibility("hidden")))

extern "C" {

int OldPthreadCreate(pthread_t*, const pthread_attr_t*, void* (*)(void*),
                     void*);
int OldPthreadJoin(pthread_t, void**);
int OldPthreadSigmask(int, const sigset_t*, sigset_t*);
__asm__(".symver OldPthreadCreate, pthread_create@" OLD_VERSION);
__asm__(".symver OldPthreadJoin, pthread_join@" OLD_VERSION);
__asm__(".symver OldPthreadSigmask, pthread_sigmask@" OLD_VERSION);

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

#endif  // OLD_VERSION
#endif  // __GLIBC_PREREQ
