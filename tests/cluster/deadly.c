/* Preloaded into executors by tests: opening a file whose path contains DEADLY_SCAN kills the process, as the system does
 * for want of memory.
 *
 *     cc -shared -fPIC -o deadly.so deadly.c && LD_PRELOAD=./deadly.so DEADLY_SCAN=sub-007_T1w neurosieve executor ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static void meet(const char *path) {
    const char *deadly = getenv("DEADLY_SCAN");
    if (deadly && path && strstr(path, deadly))
        kill(getpid(), SIGKILL);
}

#define MODE(flags, mode)                                                                                              \
    va_list more;                                                                                                      \
    va_start(more, flags);                                                                                             \
    int has_mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;                                                \
    mode_t mode = has_mode ? va_arg(more, mode_t) : 0;                                                                 \
    va_end(more);

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        MODE(flags, mode)                                                                                              \
        meet(path);                                                                                                    \
        int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                \
        return next(path, flags, mode);                                                                                \
    }

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        MODE(flags, mode)                                                                                              \
        meet(path);                                                                                                    \
        int (*next)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name);      \
        return next(folder, path, flags, mode);                                                                        \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
