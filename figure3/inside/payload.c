/* figure3: times a command, and is itself the system-call and I/O mixes. Static: the same program in every machine.
 *
 *   figure3 time NAME TURN COMMAND...    runs it; one line of JSON on stdout, its own output on stderr
 *   figure3 getpid|stat|pipe|fork COUNT  that many system calls, stat(2)s, round trips, or children
 *   figure3 write|read FILE MIB          in 4 KiB pieces; write: fsync(2) every 64 KiB; read: not from the page cache
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { PIECE = 4096, SYNC_EVERY = 16 };

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long in_us(struct timeval time)
{
    return time.tv_sec * 1000000L + time.tv_usec;
}

/* The processor's counter beside the kernel's clock: with -icount it is QEMU's virtual time itself, in ns. */
static int time_command(const char *name, const char *turn, char **command)
{
    struct rusage used;
    int status;
    int64_t start_ns = now_ns();
    uint64_t start_ticks = __rdtsc();
    pid_t child = fork();
    if (child == 0) {
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execv(command[0], command);
        err(127, "%s", command[0]);
    }
    if (child < 0 || wait4(child, &status, 0, &used) != child)
        err(1, "%s", name);
    uint64_t ticks = __rdtsc() - start_ticks;
    int64_t elapsed_ns = now_ns() - start_ns;
    printf("figure3: {\"payload\": \"%s\", \"turn\": %s, \"elapsed_ns\": %lld, \"ticks\": %llu, \"user_us\": %ld, "
           "\"system_us\": %ld, \"status\": %d}\n",
           name, turn, (long long)elapsed_ns, (unsigned long long)ticks, in_us(used.ru_utime), in_us(used.ru_stime),
           WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}

static void do_getpid(long count)
{
    for (long n = 0; n < count; n++)
        syscall(SYS_getpid);
}

static void do_stat(long count)
{
    struct stat state;
    for (long n = 0; n < count; n++)
        if (stat("/usr/lib/python3.11/os.py", &state) != 0)
            err(1, "stat");
}

/* Two processes: each round trip is four system calls and two changes of address space. */
static void do_pipe(long count)
{
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) != 0 || pipe(back) != 0)
        err(1, "pipe");
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    for (long n = 0; n < count; n++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            err(1, "pipe");
    close(there[1]);
    waitpid(child, NULL, 0);
}

static void do_fork(long count)
{
    for (long n = 0; n < count; n++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) != child)
            err(1, "fork");
    }
}

static void do_write(const char *path, long pieces)
{
    char piece[PIECE];
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0)
        err(1, "%s", path);
    for (long n = 0; n < pieces; n++) {
        memset(piece, (int)n, PIECE);
        if (write(file, piece, PIECE) != PIECE || ((n + 1) % SYNC_EVERY == 0 && fsync(file) != 0))
            err(1, "%s", path);
    }
    if (fsync(file) != 0 || close(file) != 0)
        err(1, "%s", path);
}

static void do_read(const char *path, long pieces)
{
    char piece[PIECE];
    int file = open(path, O_RDONLY);
    if (file < 0 || posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0)
        err(1, "%s", path);
    for (long n = 0; n < pieces; n++)
        if (read(file, piece, PIECE) != PIECE || piece[0] != (char)n)
            errx(1, "%s: piece %ld is not what was written", path, n);
    close(file);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(long);
    } mixes[] = { { "getpid", do_getpid }, { "stat", do_stat }, { "pipe", do_pipe }, { "fork", do_fork } };
    if (argc >= 5 && strcmp(argv[1], "time") == 0)
        return time_command(argv[2], argv[3], argv + 4);
    for (unsigned n = 0; argc == 3 && n < sizeof mixes / sizeof *mixes; n++)
        if (strcmp(argv[1], mixes[n].name) == 0)
            return mixes[n].run(atol(argv[2])), 0;
    if (argc == 4 && strcmp(argv[1], "write") == 0)
        return do_write(argv[2], atol(argv[3]) * (1048576 / PIECE)), 0;
    if (argc == 4 && strcmp(argv[1], "read") == 0)
        return do_read(argv[2], atol(argv[3]) * (1048576 / PIECE)), 0;
    errx(64, "usage: figure3 time NAME TURN COMMAND... | getpid|stat|pipe|fork COUNT | write|read FILE MIB");
}
