/* A wall clock for LD_PRELOAD: each time has an offset, the number of milliseconds at the start of the file $CLOCK_FILE. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long offset_ms(void)
{
    static int file = -2;
    char text[32] = {0};
    if (file == -2) {
        const char *name = getenv("CLOCK_FILE");
        file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    }
    return file < 0 || pread(file, text, sizeof text - 1, 0) <= 0 ? 0 : atoll(text);
}

int clock_gettime(clockid_t id, struct timespec *found)
{
    int failed = (int)syscall(SYS_clock_gettime, id, found);
    if (!failed && id == CLOCK_REALTIME) {
        long long ms = offset_ms();
        found->tv_sec += ms / 1000;
        found->tv_nsec += ms % 1000 * 1000000;
        if (found->tv_nsec < 0) {
            found->tv_sec--;
            found->tv_nsec += 1000000000;
        } else if (found->tv_nsec >= 1000000000) {
            found->tv_sec++;
            found->tv_nsec -= 1000000000;
        }
    }
    return failed;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}
