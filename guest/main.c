/* Which sub-command, and the few things every part needs. */
#include "lrms_vm_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void say(const char *format, va_list values) {
    char line[1024];
    int length = vsnprintf(line, sizeof line - 1, format, values);
    size_t end = length < 0 ? 0 : (size_t)length < sizeof line - 2 ? (size_t)length : sizeof line - 2;
    line[end] = '\n';
    (void)!write(STDERR_FILENO, "lrms-vm: ", 9);
    (void)!write(STDERR_FILENO, line, end + 1);
}

void warn_line(const char *format, ...) {
    va_list values;
    va_start(values, format);
    say(format, values);
    va_end(values);
}

void die(int code, const char *format, ...) {
    va_list values;
    va_start(values, format);
    say(format, values);
    va_end(values);
    exit(code);
}

void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        die(EXIT_AMBIGUOUS, "out of memory");
    return memory;
}

long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

char *read_all(int fd, size_t limit, size_t *length) {
    size_t room = 4096, used = 0;
    char *bytes = allocate(room + 1, 1);
    for (;;) {
        if (used == room) {
            char *larger = room >= limit ? NULL : realloc(bytes, room * 2 + 1);
            if (larger == NULL) {
                free(bytes);
                errno = EFBIG;
                return NULL;
            }
            bytes = larger;
            room *= 2;
        }
        ssize_t got = read(fd, bytes + used, room - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            free(bytes);
            return NULL;
        }
        if (got == 0)
            break;
        used += (size_t)got;
    }
    bytes[used] = '\0';
    if (length != NULL)
        *length = used;
    return bytes;
}

char *read_file(const char *path, size_t limit, size_t *length) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    char *bytes = read_all(fd, limit, length);
    int failure = errno;
    close(fd);
    errno = failure;
    return bytes;
}

int write_all(int fd, const void *bytes, size_t length) {
    const char *next = bytes;
    while (length > 0) {
        ssize_t done = write(fd, next, length);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        next += done;
        length -= (size_t)done;
    }
    return 0;
}

int write_file(const char *path, const void *bytes, size_t length, mode_t mode) {
    char fresh[512];
    if (snprintf(fresh, sizeof fresh, "%s.new", path) >= (int)sizeof fresh) {
        errno = ENAMETOOLONG;
        return -1;
    }
    unlink(fresh);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        return -1;
    if (fchmod(fd, mode) < 0 || write_all(fd, bytes, length) < 0) {
        close(fd);
        return -1;
    }
    close(fd);
    return rename(fresh, path);
}

static int digit64(unsigned char c) {
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* RFC 4648 section 4, padding optional. */
char *decode64(const char *text, size_t *length) {
    size_t used = 0;
    char *bytes = allocate(strlen(text) * 3 / 4 + 4, 1);
    uint32_t bits = 0;
    int count = 0;
    for (; *text != '\0' && *text != '='; text++) {
        int value = digit64((unsigned char)*text);
        if (value < 0) {
            free(bytes);
            return NULL;
        }
        bits = (bits << 6) | (uint32_t)value;
        if ((count += 6) >= 8) {
            count -= 8;
            bytes[used++] = (char)(bits >> count);
        }
    }
    if (text[strspn(text, "=")] != '\0') {
        free(bytes);
        return NULL;
    }
    bytes[used] = '\0';
    if (length != NULL)
        *length = used;
    return bytes;
}

static int usage(void) {
    warn_line("usage: guest boot SEEDDIR | early SEEDDIR | channel [DEVICE] | prepare ID NAME | task ID SPEC | task ID -- ARGV... |"
              " signal ID NAME | follow ID | status ID | share DIR64 | mounted SECONDS DIR64... | srun ... | pbsdsh ... |"
              " connect PLACE");
    return EXIT_USAGE;
}

int main(int argc, char **argv) {
    const char *name = argc > 0 ? strrchr(argv[0], '/') : NULL;
    name = name != NULL ? name + 1 : argc > 0 ? argv[0] : "";
    if (is_launcher(name))
        return launch(name, argv);
    if (strcmp(name, "lrms-vm-root") == 0)
        return become_root(argc, argv);
    if (argc < 2)
        return usage();
    const char *verb = argv[1];
    if (strcmp(verb, "boot") == 0 && (argc == 3 || argc == 4))
        return boot(argv[2], argc == 4 ? argv[3] : NULL);
    if (strcmp(verb, "early") == 0 && argc == 3)
        return early(argv[2]);
    if (strcmp(verb, "channel") == 0 && argc <= 3)
        return run_channel(argc == 3 ? argv[2] : NULL);
    if (strcmp(verb, "prepare") == 0 && argc == 4)
        return prepare(argv[2], argv[3]);
    if (strcmp(verb, "task") == 0 && argc >= 4)
        return task(argc - 2, argv + 2);
    if (strcmp(verb, "signal") == 0 && argc == 4)
        return signal_task(argv[2], argv[3]);
    if (strcmp(verb, "follow") == 0 && argc == 3)
        return follow(argv[2]);
    if (strcmp(verb, "status") == 0 && argc == 3)
        return status_of_task(argv[2]);
    if (strcmp(verb, "share") == 0 && argc == 3)
        return mount_share(argv[2]);
    if (strcmp(verb, "mounted") == 0 && argc >= 4)
        return wait_mounted(argc - 2, argv + 2);
    if (is_launcher(verb))
        return launch(verb, argv + 1);
    if (strcmp(verb, "connect") == 0 && argc == 3)
        return connect_to(argv[2]);
    return usage();
}
