/* A disk that takes BENCH_SYNC_DELAY_US longer for every fsync and fdatasync; to be preloaded. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_longer(void) {
    const char *delay = getenv("BENCH_SYNC_DELAY_US");
    if (delay)
        usleep((useconds_t)atoi(delay));
}

int fdatasync(int fd) {
    wait_longer();
    return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    wait_longer();
    return (int)syscall(SYS_fsync, fd);
}
