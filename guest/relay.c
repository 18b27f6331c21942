/* Bytes between sshd's sockets and the payload's pipes: sshd gives sockets, which cannot be opened as /dev/stdout. */
#include "relay.h"

#include "lrms_vm_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

void stream_open(struct stream *stream, int from, int to) {
    *stream = (struct stream){.from = from, .to = to, .bytes = allocate(STREAM_BYTES, 1)};
}

int stream_poll(const struct stream *stream, struct pollfd *slots) {
    if (stream->to < 0)
        return 0;
    if (stream->end > stream->start)
        slots[0] = (struct pollfd){.fd = stream->to, .events = POLLOUT};
    else
        slots[0] = (struct pollfd){.fd = stream->from, .events = POLLIN};
    return 1;
}

static void close_end(int *fd, int how) {
    if (*fd < 0)
        return;
    if (*fd <= STDERR_FILENO)
        shutdown(*fd, how); /* ours are sockets, kept open so that the numbers stay taken; files do not mind */
    else
        close(*fd);
    *fd = -1;
}

void stream_close(struct stream *stream) {
    /* stderr's socket stays whole: its hang-up is how we learn that the session is gone */
    if (stream->to != STDERR_FILENO)
        close_end(&stream->to, SHUT_WR);
    stream->to = -1;
    close_end(&stream->from, SHUT_RD);
    stream->start = stream->end = 0;
}

static ssize_t put(int fd, const char *bytes, size_t length) {
    ssize_t done = send(fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    return done < 0 && errno == ENOTSOCK ? write(fd, bytes, length) : done;
}

static bool ready(int fd, short events) {
    struct pollfd slot = {.fd = fd, .events = events};
    return poll(&slot, 1, 0) > 0;
}

size_t stream_move(struct stream *stream) {
    if (stream->to < 0)
        return 0;
    if (stream->start == stream->end) {
        if (!ready(stream->from, POLLIN))
            return 0;
        ssize_t got = read(stream->from, stream->bytes, STREAM_BYTES);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            return 0;
        if (got <= 0) { /* the end: the other side learns it too */
            stream_close(stream);
            return 0;
        }
        stream->start = 0;
        stream->end = (size_t)got;
    }
    ssize_t done = put(stream->to, stream->bytes + stream->start, stream->end - stream->start);
    if (done < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (done < 0) { /* nobody reads any more: let the writer know */
        stream_close(stream);
        return 0;
    }
    stream->start += (size_t)done;
    return (size_t)done;
}

void stream_drain(struct stream *stream, int patience_ms) {
    int waiting = 0;
    if (stream->to < 0 || ioctl(stream->from, FIONREAD, &waiting) < 0)
        return;
    for (size_t left = stream->end - stream->start + (size_t)waiting; left > 0 && stream->to >= 0;) {
        size_t moved = stream_move(stream);
        left -= moved < left ? moved : left;
        struct pollfd slot = {.fd = stream->to, .events = POLLOUT};
        if (moved == 0 && stream->to >= 0 && poll(&slot, 1, patience_ms) <= 0)
            return;
    }
}
