/* The channel: a byte pipe with memory, made into one clean ssh connection after another.
 *
 * The host repeats "LRMS-VM hello NONCE" until it reads "LRMS-VM ready NONCE", then says "LRMS-VM go NONCE" once and
 * ssh follows at the next byte. So what was queued before we were up, or is left of an earlier connection, is
 * harmless: only the go that carries the nonce we last answered starts sshd.
 */
#include "lrms_vm_guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

enum { MAX_LINE = 128, MAX_NONCE = 64, IDLE_US = 20000, GREETING_S = 60 };

/* The channel of a Xen guest is its second console; the first is the one with the boot messages. */
#define XEN_CONSOLE "/dev/hvc1"

static bool under_xen(void) {
    char *type = read_file("/sys/hypervisor/type", 4096, NULL);
    bool xen = type != NULL && strcmp(type, "xen\n") == 0;
    free(type);
    return xen;
}

/* The port by its name in sysfs: udev may not have made /dev/virtio-ports/ yet. */
static int open_port(void) {
    if (under_xen())
        return open(XEN_CONSOLE, O_RDWR | O_NOCTTY | O_CLOEXEC);
    int fd = open("/dev/virtio-ports/" PORT_NAME, O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        return fd;
    DIR *ports = opendir("/sys/class/virtio-ports");
    if (ports == NULL)
        return -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(ports)) != NULL;) {
        char path[512];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        char *name = read_file(path, 4096, NULL);
        if (name != NULL && strncmp(name, PORT_NAME "\n", sizeof PORT_NAME) == 0) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            fd = open(path, O_RDWR | O_CLOEXEC);
        }
        free(name);
    }
    closedir(ports);
    return fd;
}

static int open_channel(const char *device) {
    if (device != NULL && strcmp(device, "-") == 0)
        return fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    for (bool told = false;; usleep(IDLE_US)) {
        int fd = device != NULL ? open(device, O_RDWR | O_NOCTTY | O_CLOEXEC) : open_port();
        if (fd >= 0)
            return fd;
        if (!told)
            warn_line("waiting for the channel %s: %s", device != NULL ? device : PORT_NAME, strerror(errno));
        told = true;
    }
}

static void make_raw(int fd) {
    struct termios mode;
    if (tcgetattr(fd, &mode) == 0) {
        cfmakeraw(&mode);
        tcsetattr(fd, TCSANOW, &mode);
    }
}

/* One byte at a time: what follows the go line belongs to sshd. */
static void read_line(int fd, char line[MAX_LINE], bool ends) {
    size_t used = 0;
    for (;;) {
        char byte;
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        poll(&wait, 1, -1);
        ssize_t got = read(fd, &byte, 1);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0 && ends)
            _exit(0);
        if (got <= 0) { /* nobody at the host's end */
            usleep(IDLE_US);
            used = 0;
            continue;
        }
        if (byte == '\n') {
            line[used] = '\0';
            return;
        }
        if (used == MAX_LINE - 1) /* not ours: keep only what may become a line of ours */
            memmove(line, line + 1, --used);
        line[used++] = byte;
    }
}

/* The nonce behind `word`, or NULL. The word may stand behind left-overs of an earlier connection. */
static const char *nonce_after(char *line, const char *word) {
    char *found = NULL;
    for (char *next = line; (next = strstr(next, word)) != NULL; next++)
        found = next;
    if (found == NULL)
        return NULL;
    found += strlen(word);
    size_t length = strspn(found, "0123456789abcdef");
    return length >= 16 && length <= MAX_NONCE && found[length] == '\0' ? found : NULL;
}

static void answer(int fd, const char *text) {
    size_t length = strlen(text), done = 0;
    for (int tries = 0; done < length && tries < 100; tries++) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        poll(&wait, 1, 100);
        ssize_t wrote = wait.revents & POLLOUT ? write(fd, text + done, length - done) : 0;
        if (wrote > 0)
            done += (size_t)wrote;
        else if (wait.revents & (POLLHUP | POLLERR))
            return;
    }
}

static void serve(int fd) {
    pid_t child = fork();
    if (child < 0) {
        warn_line("cannot start sshd: %s", strerror(errno));
        return;
    }
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        dup2(fd, STDIN_FILENO);
        dup2(fd, STDOUT_FILENO);
        execl("/usr/sbin/sshd", "/usr/sbin/sshd", "-i", "-e", "-f", RUN_DIR "/sshd_config", (char *)NULL);
        warn_line("/usr/sbin/sshd: %s", strerror(errno));
        _exit(127);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* One connection, from its first hello to its end. */
static void serve_peer(int fd) {
    char asked[MAX_NONCE + 1] = "", line[MAX_LINE], reply[MAX_LINE];
    for (;;) {
        alarm(GREETING_S);
        read_line(fd, line, true);
        const char *nonce = nonce_after(line, "LRMS-VM hello ");
        if (nonce != NULL) {
            snprintf(asked, sizeof asked, "%s", nonce);
            snprintf(reply, sizeof reply, "LRMS-VM ready %s\n", nonce);
            answer(fd, reply);
        } else if ((nonce = nonce_after(line, "LRMS-VM go ")) != NULL && asked[0] && strcmp(nonce, asked) == 0) {
            alarm(0);
            serve(fd);
            return;
        }
    }
}

/* Where the seed says so: at our own address, for the host alone, whose address there is `host`. */
static int listen_for(const char *host, int port) {
    struct sockaddr_in us = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, peer;
    struct in_addr allowed;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || inet_pton(AF_INET, host, &allowed) != 1 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(fd, (struct sockaddr *)&us, sizeof us) < 0 || listen(fd, 8) < 0) {
        warn_line("channel: port %d: %s", port, strerror(errno));
        return EXIT_AMBIGUOUS;
    }
    for (;;) {
        socklen_t size = sizeof peer;
        int pipe = accept4(fd, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (pipe < 0) {
            usleep(IDLE_US);
            continue;
        }
        pid_t child = peer.sin_addr.s_addr == allowed.s_addr ? fork() : -1;
        if (child == 0) {
            setsockopt(pipe, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            serve_peer(pipe);
            _exit(0);
        }
        close(pipe);
    }
}

int run_channel(const char *device) {
    signal(SIGPIPE, SIG_IGN);
    char *place = device == NULL ? read_file(CHANNEL_FILE, 4096, NULL) : NULL, host[64];
    int port;
    if (place != NULL && sscanf(place, "tcp %d %63s", &port, host) == 2)
        return listen_for(host, port);
    free(place);
    int fd = open_channel(device);
    make_raw(fd);
    char asked[MAX_NONCE + 1] = "", line[MAX_LINE], reply[MAX_LINE];
    for (;;) {
        fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
        read_line(fd, line, false);
        const char *nonce = nonce_after(line, "LRMS-VM hello ");
        if (nonce != NULL) {
            snprintf(asked, sizeof asked, "%s", nonce);
            snprintf(reply, sizeof reply, "LRMS-VM ready %s\n", nonce);
            answer(fd, reply);
        } else if ((nonce = nonce_after(line, "LRMS-VM go ")) != NULL && asked[0] && strcmp(nonce, asked) == 0) {
            asked[0] = '\0';
            fcntl(fd, F_SETFL, O_RDWR);
            serve(fd);
            /* The host cannot see that sshd is gone; to its ssh this is a broken packet, and it ends at once. */
            answer(fd, "\nLRMS-VM bye LRMS-VM bye LRMS-VM bye LRMS-VM bye LRMS-VM bye LRMS-VM bye\n");
        }
    }
}
