// What the kernels share: vectors of the processor's width, and XLA's threads.
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__AVX512F__)
enum { WIDTH = 16, REGISTERS = 32 };
#elif defined(__AVX2__)
enum { WIDTH = 8, REGISTERS = 16 };
#elif defined(__ARM_NEON)
enum { WIDTH = 4, REGISTERS = 32 };
#else
enum { WIDTH = 4, REGISTERS = 16 };
#endif

// Loaded from and stored to any address that floats have.
typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

enum { SPINS = 10000 };  // looks for the last helper's end, before its processor is left to others

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Some of a kernel's tasks, which depend on nothing but their number: which thread does one reaches no bit.
typedef void Part(const void *shared, int64_t start, int64_t stop);

typedef struct {
  atomic_llong next, done, references;
  int64_t tasks, each;
  Part *part;
  const void *shared;
} Job;

static void release(Job *job) {
  if (atomic_fetch_sub(&job->references, 1) == 1) free(job);
}

static void take_part(Job *job) {
  for (int64_t start; (start = atomic_fetch_add(&job->next, job->each)) < job->tasks;) {
    int64_t stop = least(start + job->each, job->tasks);
    job->part(job->shared, start, stop);
    atomic_fetch_add(&job->done, stop - start);
  }
}

static void help(void *job) {
  take_part(job);
  release(job);
}

static int64_t threads_of(XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&asked);
  if (error) {
    XLA_FFI_Error_Destroy_Args gone = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
    frame->api->XLA_FFI_Error_Destroy(&gone);
    return 1;
  }
  return threads;
}

// All tasks, `each` at a time, by this thread and those of XLA's that come to help. One that comes too late finds
// nothing to do, and touches nothing but the job itself: `shared` may be gone by then.
static void in_parallel(XLA_FFI_CallFrame *frame, int64_t tasks, int64_t each, Part *part, const void *shared) {
  int64_t helpers = least(threads_of(frame), (tasks + each - 1) / each) - 1;
  Job *job = helpers > 0 ? malloc(sizeof *job) : NULL;
  if (!job) {
    part(shared, 0, tasks);
    return;
  }
  *job = (Job){.tasks = tasks, .each = each, .part = part, .shared = shared};
  atomic_store(&job->references, 1 + helpers);
  for (int64_t i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args asked = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, job};
    XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&asked);
    if (error) {
      XLA_FFI_Error_Destroy_Args gone = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&gone);
      release(job);
    }
  }
  take_part(job);
  for (int64_t spins = 0; atomic_load(&job->done) < tasks; spins++) {
    if (spins < SPINS) PAUSE();
    else sched_yield();
  }
  release(job);
}

// Whether XLA asks which version of its interface this is; the answer is given then.
static int asks_version(XLA_FFI_CallFrame *frame) {
  __auto_type extension = frame->extension_start;  // newer headers have another name for its type
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

static XLA_FFI_Error *refused(XLA_FFI_CallFrame *frame, const char *why) {
  XLA_FFI_Error_Create_Args asked = {
      XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, why, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return frame->api->XLA_FFI_Error_Create(&asked);
}

INLINE XLA_FFI_Buffer *argument(XLA_FFI_CallFrame *frame, int64_t i) { return frame->args.args[i]; }
INLINE XLA_FFI_Buffer *result(XLA_FFI_CallFrame *frame, int64_t i) { return frame->rets.rets[i]; }
