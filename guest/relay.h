/* Bytes between sshd's sockets and the payload's pipes. */
#ifndef LRMS_VM_RELAY_H
#define LRMS_VM_RELAY_H

#include <poll.h>
#include <stddef.h>

/* One direction. A closed end is -1. */
struct stream {
    int from, to;
    char *bytes;
    size_t start, end;
};

enum { STREAM_BYTES = 65536 };

void stream_open(struct stream *stream, int from, int to);
int stream_poll(const struct stream *stream, struct pollfd *slots); /* fills at most 1 slot; returns how many */
size_t stream_move(struct stream *stream);                         /* without blocking; bytes moved */
void stream_drain(struct stream *stream, int patience_ms);         /* what is there now, and no more */
void stream_close(struct stream *stream);

#endif
