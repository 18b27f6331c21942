/* srun or pbsdsh inside the guest, by the name we are called: asks the host's side of the task to run the real one.
 *
 * Frames on the socket $LRMS_VM_SRUN or $LRMS_VM_PBSDSH: one byte of kind, four of length (big endian), the bytes.
 *   to the host    A argv  D working directory  E environment (all NUL-terminated fields)  G go
 *                  I input (none: its end), each as answer to a W   S signal number, one byte
 *   from the host  W send more input   1 stdout   2 stderr   X 'e' or 's' and a number: how the real one ended
 */
#include "lrms_vm_guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_FRAME = 1 << 20, INPUT_BYTES = 32768 };

static const struct launcher {
    const char *name, *variable;
} LAUNCHERS[] = {{"srun", "LRMS_VM_SRUN"}, {"pbsdsh", "LRMS_VM_PBSDSH"}};
static const char *program; /* for messages */

static const int FORWARDED[] = {SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCONT};

static void send_frame(int fd, char kind, const void *bytes, size_t length) {
    unsigned char head[5] = {(unsigned char)kind};
    uint32_t size = htonl((uint32_t)length);
    memcpy(head + 1, &size, 4);
    if (write_all(fd, head, 5) < 0 || write_all(fd, bytes, length) < 0)
        die(EXIT_LOST, "%s: the host's side is gone: %s", program, strerror(errno));
}

static void send_fields(int fd, char kind, char *const *fields) {
    size_t length = 0;
    for (char *const *field = fields; *field != NULL; field++)
        length += strlen(*field) + 1;
    char *bytes = allocate(length, 1), *next = bytes;
    for (char *const *field = fields; *field != NULL; field++)
        next = stpcpy(next, *field) + 1;
    send_frame(fd, kind, bytes, length);
    free(bytes);
}

static void read_exactly(int fd, void *bytes, size_t length) {
    for (char *next = bytes; length > 0;) {
        ssize_t got = read(fd, next, length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            die(EXIT_LOST, "%s: the host's side is gone", program);
        next += got;
        length -= (size_t)got;
    }
}

static int ask(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        die(EXIT_LOST, "%s: %s: not a usable socket", program, path);
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(EXIT_LOST, "%s: cannot reach the host's side: %s", program, strerror(errno));
    return fd;
}

__attribute__((noreturn)) static void end_like(const char *bytes, size_t length) {
    int number = length == 2 ? (unsigned char)bytes[1] : EXIT_LOST;
    if (length == 2 && bytes[0] == 's') {
        sigset_t all;
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        signal(number, SIG_DFL);
        sigfillset(&all);
        sigprocmask(SIG_UNBLOCK, &all, NULL);
        raise(number);
        number += 128;
    }
    exit(number);
}

/* One frame from the host. Returns true when it wants input. */
static bool take_frame(int fd) {
    static char bytes[MAX_FRAME];
    unsigned char head[5];
    uint32_t length;
    read_exactly(fd, head, 5);
    memcpy(&length, head + 1, 4);
    length = ntohl(length);
    if (length > MAX_FRAME)
        die(EXIT_LOST, "%s: the host's side sent nonsense", program);
    read_exactly(fd, bytes, length);
    if (head[0] == 'X')
        end_like(bytes, length);
    if (head[0] == '1' || head[0] == '2')
        (void)!write_all(head[0] - '0', bytes, length); /* a reader that left is its own affair */
    return head[0] == 'W';
}

static const struct launcher *find(const char *name) {
    for (size_t i = 0; i < sizeof LAUNCHERS / sizeof *LAUNCHERS; i++)
        if (strcmp(name, LAUNCHERS[i].name) == 0)
            return &LAUNCHERS[i];
    return NULL;
}

bool is_launcher(const char *name) {
    return find(name) != NULL;
}

/* By a name for which `is_launcher` said yes. */
int launch(const char *name, char **argv) {
    const struct launcher *called = find(name);
    const char *path = getenv(called->variable);
    program = called->name;
    if (path == NULL)
        die(EXIT_USAGE, "%s: not possible from here: this task was not started by a batch script", program);
    signal(SIGPIPE, SIG_IGN);
    int fd = ask(path);
    sigset_t forwarded;
    sigemptyset(&forwarded);
    for (size_t i = 0; i < sizeof FORWARDED / sizeof *FORWARDED; i++)
        sigaddset(&forwarded, FORWARDED[i]);
    sigprocmask(SIG_BLOCK, &forwarded, NULL);
    int signals = signalfd(-1, &forwarded, SFD_CLOEXEC | SFD_NONBLOCK);
    char *here = getcwd(NULL, 0);
    send_fields(fd, 'A', argv);
    send_fields(fd, 'D', (char *const[]){here ? here : "/", NULL});
    send_fields(fd, 'E', environ);
    send_frame(fd, 'G', "", 0);
    bool wanted = false;
    for (;;) {
        struct pollfd slots[3] = {
            {.fd = fd, .events = POLLIN},
            {.fd = signals, .events = POLLIN},
            {.fd = wanted ? STDIN_FILENO : -1, .events = POLLIN},
        };
        if (poll(slots, 3, -1) < 0)
            continue;
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof info) == sizeof info)
            send_frame(fd, 'S', &(unsigned char){(unsigned char)info.ssi_signo}, 1);
        if (slots[2].revents) {
            char input[INPUT_BYTES];
            ssize_t got = read(STDIN_FILENO, input, sizeof input);
            if (got >= 0 || (errno != EINTR && errno != EAGAIN)) {
                send_frame(fd, 'I', input, got > 0 ? (size_t)got : 0);
                wanted = false;
            }
        }
        if (slots[0].revents && take_frame(fd))
            wanted = true;
    }
}
