/* The host's end of the channel: ProxyCommand of the shared connection (ssh_config(5), ProxyUseFdpass). It reaches the
 * guest, greets it as channel.c explains, gives ssh the open socket, and ends: nothing of ours stays beside ssh.
 *
 * Runs on the host as the job's user. What the guest says is hostile: only one line of it means anything.
 */
#include "lrms_vm_guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HELLO_MS = 1000, RETRY_MS = 100, NONCE_BYTES = 16, LINE = 64 };

/* Ends the program when ssh does not want the socket any more: its end of our stdout is closed. */
static void wait_for(int fd, short events, int limit_ms, short *found) {
    struct pollfd waits[] = {{.fd = STDOUT_FILENO}, {.fd = fd, .events = events}};
    if (poll(waits, 2, limit_ms) < 0 && errno != EINTR)
        die(EXIT_LOST, "poll: %s", strerror(errno));
    if (waits[0].revents != 0)
        die(EXIT_LOST, "nobody waits for the guest any more");
    *found = waits[1].revents;
}

static int reach_socket(const char *path) {
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof where.sun_path)
        die(EXIT_USAGE, "%s: too long for a socket", path);
    strcpy(where.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&where, sizeof where) < 0)
        die(EXIT_LOST, "%s: cannot reach the guest: %s", path, strerror(errno));
    return fd;
}

/* One attempt: the connected socket, or -1. */
static int try_address(const struct sockaddr_in *where) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), failure = 0, on = 1;
    socklen_t size = sizeof failure;
    if (fd < 0)
        die(EXIT_LOST, "socket: %s", strerror(errno));
    short found = POLLOUT;
    if (connect(fd, (const struct sockaddr *)where, sizeof *where) < 0) {
        found = 0;
        if (errno == EINPROGRESS)
            wait_for(fd, POLLOUT, HELLO_MS, &found);
    }
    if ((found & POLLOUT) && getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) == 0 && failure == 0) {
        fcntl(fd, F_SETFL, O_RDWR);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        return fd;
    }
    close(fd);
    return -1;
}

/* An address does not answer before its guest is up. */
static int reach_address(const char *text) {
    struct sockaddr_in where = {.sin_family = AF_INET};
    char address[INET_ADDRSTRLEN];
    const char *colon = strchr(text, ':');
    int port = colon != NULL ? atoi(colon + 1) : 0;
    if (colon == NULL || (size_t)(colon - text) >= sizeof address || port <= 0 || port > 65535)
        die(EXIT_USAGE, "%s: not ADDRESS:PORT", text);
    snprintf(address, sizeof address, "%.*s", (int)(colon - text), text);
    where.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, address, &where.sin_addr) != 1)
        die(EXIT_USAGE, "%s: not an address", address);
    for (;;) {
        int fd = try_address(&where);
        short found;
        if (fd >= 0)
            return fd;
        wait_for(-1, 0, RETRY_MS, &found);
    }
}

static void tell(int fd, const char *text) {
    for (size_t length = strlen(text); length > 0;) {
        ssize_t sent = send(fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            die(EXIT_LOST, "the guest's channel broke: %s", strerror(errno));
        if (sent > 0) {
            text += sent;
            length -= (size_t)sent;
        }
    }
}

/* Bytes that the guest has not read yet, where the kind of pipe can tell (unix(7), tcp(7)). */
static int unread(int fd) {
    int waiting = 0;
    return ioctl(fd, SIOCOUTQ, &waiting) < 0 ? 0 : waiting;
}

static void greet(int fd) {
    unsigned char bytes[NONCE_BYTES], heard[4096];
    char nonce[2 * NONCE_BYTES + 1], hello[LINE], ready[LINE], go[LINE], line[LINE];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        die(EXIT_LOST, "getrandom: %s", strerror(errno));
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(nonce + 2 * i, 3, "%02x", bytes[i]);
    snprintf(hello, sizeof hello, "LRMS-VM hello %s\n", nonce);
    snprintf(ready, sizeof ready, "LRMS-VM ready %s", nonce);
    snprintf(go, sizeof go, "LRMS-VM go %s\n", nonce);
    size_t used = 0;
    for (long long hello_at = now_ms() - HELLO_MS;;) {
        long long now = now_ms();
        if (now - hello_at >= HELLO_MS && unread(fd) == 0) { /* never fill a pipe that nobody reads yet */
            tell(fd, hello);
            hello_at = now;
        }
        short found;
        wait_for(fd, POLLIN, HELLO_MS, &found);
        if (found == 0)
            continue;
        ssize_t got = read(fd, heard, sizeof heard);
        if (got < 0 && errno != EINTR)
            die(EXIT_LOST, "the guest's channel broke: %s", strerror(errno));
        if (got == 0)
            die(EXIT_LOST, "the guest is gone: its channel was closed");
        for (ssize_t i = 0; i < got; i++) {
            if (heard[i] != '\n') {
                if (used < sizeof line) /* a full line is longer than ours: it equals none */
                    line[used++] = (char)heard[i];
                continue;
            }
            if (used == strlen(ready) && memcmp(line, ready, used) == 0) {
                tell(fd, go);
                return;
            }
            used = 0;
        }
    }
}

/* ssh takes one descriptor, sent beside one byte. */
static void hand_over(int fd) {
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = {0};
    char byte = 0;
    struct iovec beside = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &beside, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(STDOUT_FILENO, &message, MSG_NOSIGNAL) != 1)
        die(EXIT_LOST, "cannot give ssh its socket: %s", strerror(errno));
}

int connect_to(const char *place) {
    signal(SIGPIPE, SIG_IGN);
    int fd = strncmp(place, "tcp:", 4) == 0 ? reach_address(place + 4) : reach_socket(place);
    greet(fd);
    hand_over(fd);
    return 0;
}
