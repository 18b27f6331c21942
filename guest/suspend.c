/* A job that its batch system suspends: on the host SIGTSTP, and after a while SIGSTOP, which nobody can hand on.
 *
 * From the first SIGTSTP on the host's half sends a byte each second. When it is silent it is stopped itself, and so is
 * the task then, with all that it started; with the next byte, or the end of them, it goes on.
 */
#include "lrms_vm_guest.h"

#include <ctype.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SILENT_MS = 3000, PASSES = 20, PASS_US = 1000, MAX_STAT = 4096 };

/* proc(5), /proc/PID/stat: state and parent follow the name, which may hold anything, in parentheses. */
static pid_t parent_of(pid_t pid, char *state) {
    char path[64];
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    char *text = read_file(path, MAX_STAT, NULL), *after = text != NULL ? strrchr(text, ')') : NULL;
    if (after == NULL || sscanf(after, ") %c %d", state, &parent) != 2)
        parent = 0; /* ended meanwhile */
    free(text);
    return parent;
}

static bool descends(pid_t pid, pid_t from) {
    char state;
    while (pid > 1 && pid != from)
        pid = parent_of(pid, &state);
    return pid == from;
}

/* Whether any process below `top` was not yet as `number` makes it. */
static bool signal_below(pid_t top, int number) {
    bool any = false;
    DIR *all = opendir("/proc");
    for (struct dirent *entry; all != NULL && (entry = readdir(all)) != NULL;) {
        pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;
        char state = 'Z';
        if (pid <= 1 || pid == top || parent_of(pid, &state) == 0 || state == 'Z' || !descends(pid, top))
            continue;
        if ((state != 'T' || number != SIGSTOP) && kill(pid, number) == 0)
            any = true;
    }
    if (all != NULL)
        closedir(all);
    return any;
}

/* The task's own process is the parent of its payload, and of whatever loses its parent. */
static void signal_all(const char *id, int number) {
    char state;
    pid_t payload = payload_of(id), top = payload > 1 ? parent_of(payload, &state) : 0;
    for (int pass = 0; top > 1 && pass < PASSES && signal_below(top, number) && number == SIGSTOP; pass++)
        usleep(PASS_US); /* what was started meanwhile */
}

int follow(const char *id) {
    for (bool stopped = false;;) {
        struct pollfd slot = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&slot, 1, stopped ? -1 : SILENT_MS) == 0) {
            signal_all(id, SIGSTOP);
            stopped = true;
            continue;
        }
        char bytes[64];
        ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
        if (stopped)
            signal_all(id, SIGCONT);
        stopped = false;
        if (count <= 0)
            return 0;
    }
}
