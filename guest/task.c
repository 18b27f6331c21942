/* One payload: started exactly as asked, its end told exactly.
 *
 * SPEC is base64, or "@" for the file tasks/ID/spec, of NUL-terminated fields: umask in octal, working directory
 * ("" is home), number of environment entries, the entries, then argv. Base64, because the command passes through
 * the user's login shell, and no shell of any kind may change a byte of it.
 *
 * Exit codes 0-254 of the payload are ours. tasks/ID/status says "exit N" or "signal N" before we end; we exit with
 * 255 where a code would be ambiguous, and the host then reads the status.
 */
#include "lrms_vm_guest.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_SPEC = 64 << 20, MAX_ID = 64, HUP_AFTER_MS = 1000, KILL_AFTER_MS = 6000, FINISH_MS = 300 };

struct spec {
    mode_t mask;
    const char *cwd;
    char **environment; /* NULL: ours */
    char **argv;
};

static bool task_path(char *path, size_t room, const char *id, const char *name) {
    size_t length = strlen(id);
    if (length < 1 || length > MAX_ID || strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != length)
        return false;
    return snprintf(path, room, TASKS_DIR "/%s%s%s", id, name ? "/" : "", name ? name : "") < (int)room;
}

static void make_directory(const char *id) {
    char path[256];
    struct stat status;
    if (!task_path(path, sizeof path, id, NULL))
        die(EXIT_AMBIGUOUS, "bad task name");
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        die(EXIT_AMBIGUOUS, "%s: %s", path, strerror(errno));
    if (lstat(path, &status) < 0 || !S_ISDIR(status.st_mode) || status.st_uid != geteuid())
        die(EXIT_AMBIGUOUS, "%s: not a directory of ours", path);
}

static void note(const char *id, const char *name, const char *text) {
    char path[256];
    if (!task_path(path, sizeof path, id, name) || write_file(path, text, strlen(text), 0600) < 0)
        warn_line("%s: cannot write: %s", path, strerror(errno));
}

int prepare(const char *id, const char *name) {
    char path[256];
    size_t length;
    make_directory(id);
    if (strcmp(name, "script") != 0 && strcmp(name, "spec") != 0 && strcmp(name, "none") != 0)
        die(EXIT_USAGE, "prepare: script, spec or none");
    char *bytes = read_all(STDIN_FILENO, MAX_SPEC, &length);
    if (bytes == NULL)
        die(EXIT_AMBIGUOUS, "prepare: %s", strerror(errno));
    if (strcmp(name, "none") == 0)
        return 0;
    task_path(path, sizeof path, id, name);
    if (write_file(path, bytes, length, 0700) < 0)
        die(EXIT_AMBIGUOUS, "%s: %s", path, strerror(errno));
    return 0;
}

static struct spec read_spec(const char *id, const char *text) {
    size_t length = 0;
    char path[256], *bytes;
    if (strcmp(text, "@") == 0) {
        task_path(path, sizeof path, id, "spec");
        bytes = read_file(path, MAX_SPEC, &length);
    } else {
        bytes = decode64(text, &length);
    }
    if (bytes == NULL || length == 0 || bytes[length - 1] != '\0')
        die(EXIT_AMBIGUOUS, "task description unreadable");
    size_t count = 0, field = 0;
    for (size_t i = 0; i < length; i++)
        count += bytes[i] == '\0';
    char **fields = allocate(count + 1, sizeof *fields);
    for (char *next = bytes; field < count; next += strlen(next) + 1)
        fields[field++] = next;
    char *end = NULL;
    unsigned long entries = count >= 3 ? strtoul(fields[2], &end, 10) : 0;
    if (end == NULL || *end != '\0' || entries > count - 3 || entries + 3 >= count)
        die(EXIT_AMBIGUOUS, "task description unreadable");
    struct spec spec = {
        .mask = (mode_t)strtoul(fields[0], NULL, 8) & 0777,
        .cwd = fields[1],
        .environment = allocate(entries + 1, sizeof(char *)),
        .argv = fields + 3 + entries,
    };
    memcpy(spec.environment, fields + 3, entries * sizeof(char *));
    return spec;
}

/* What the host cannot know: which shell, home and directory there really are. */
static void settle_in(const struct spec *spec) {
    umask(spec->mask);
    if (getenv("SHELL") == NULL)
        setenv("SHELL", access("/bin/bash", X_OK) == 0 ? "/bin/bash" : "/bin/sh", 1);
    const char *home = getenv("HOME");
    if (home == NULL || access(home, X_OK) < 0) {
        char *ours = read_file(HOME_FILE, 4096, NULL);
        if (ours != NULL)
            setenv("HOME", ours, 1);
        home = getenv("HOME");
    }
    if (spec->cwd[0] == '\0' || chdir(spec->cwd) < 0) {
        if (spec->cwd[0] != '\0')
            warn_line("%s: %s in the guest; starting in %s", spec->cwd, strerror(errno), home ? home : "/");
        if ((home == NULL || chdir(home) < 0) && chdir("/") < 0)
            warn_line("/: %s", strerror(errno));
    }
    char *here = getcwd(NULL, 0);
    if (here != NULL)
        setenv("PWD", here, 1);
}

static void default_signals(void) {
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

__attribute__((noreturn)) static void become_payload(const struct spec *spec, bool tty, int go) {
    char byte;
    if (tty) {
        setpgid(0, 0);
        signal(SIGTTOU, SIG_IGN);
        tcsetpgrp(STDIN_FILENO, getpid());
    } else {
        setsid();
    }
    while (read(go, &byte, 1) < 0 && errno == EINTR) /* until our pid is on record: no signal can miss us */
        ;
    if (spec->environment != NULL)
        environ = spec->environment;
    settle_in(spec);
    default_signals();
    setpriority(PRIO_PROCESS, 0, 0); /* the channel's own is higher where it was started early */
    execvp(spec->argv[0], spec->argv);
    int code = errno == ENOENT || errno == ENOTDIR ? 127 : 126; /* POSIX, Shell Command Language 2.8.2 */
    if (errno == ENOENT && strchr(spec->argv[0], '/') == NULL)
        warn_line("%s: command not found in the guest", spec->argv[0]);
    else
        warn_line("%s: %s in the guest", spec->argv[0], strerror(errno));
    _exit(code);
}

static bool ended(pid_t child) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == child;
}

/* Until the payload ends. When the session goes away, so must it:
 * nobody reads our stdout or stderr any more, or the terminal hangs up. */
static void attend(pid_t child, bool tty, int signals) {
    long long lost_at = 0;
    bool told = false;
    while (!ended(child)) {
        struct pollfd slots[3] = {
            {.fd = signals, .events = POLLIN},
            {.fd = lost_at ? -1 : STDOUT_FILENO},
            {.fd = lost_at ? -1 : STDERR_FILENO},
        };
        poll(slots, 3, lost_at ? 50 : -1);
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof info) == sizeof info)
            if (info.ssi_signo == SIGHUP && tty && !lost_at)
                lost_at = now_ms();
        if (!lost_at && (slots[1].revents | slots[2].revents) & (POLLHUP | POLLERR))
            lost_at = now_ms();
        if (lost_at && !told && now_ms() - lost_at > HUP_AFTER_MS) {
            kill(-child, SIGHUP);
            kill(-child, SIGCONT);
            told = true;
        }
        if (lost_at && now_ms() - lost_at > KILL_AFTER_MS)
            kill(-child, SIGKILL);
    }
}

/* What the payload left running ends with it, as in a step on the host: we are its subreaper, so we know it all.
 * A moment first for what still writes, such as the tee of `exec > >(tee log)`. */
static void end_the_rest(pid_t group) {
    for (long long until = now_ms() + FINISH_MS;;) {
        pid_t reaped = waitpid(-1, NULL, WNOHANG);
        if (reaped < 0)
            return;
        if (reaped > 0)
            continue;
        if (now_ms() > until) {
            char path[64], *children;
            kill(-group, SIGKILL);
            snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
            if ((children = read_file(path, MAX_SPEC, NULL)) != NULL)
                for (char *word = strtok(children, " \n"); word != NULL; word = strtok(NULL, " \n"))
                    kill((pid_t)strtol(word, NULL, 10), SIGKILL);
            free(children);
        }
        usleep(2000);
    }
}

static int close_books(const char *id, pid_t child) {
    char text[32];
    siginfo_t info = {0};
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT); /* not reaped yet: its number cannot become another's */
    bool exited = info.si_code == CLD_EXITED;
    snprintf(text, sizeof text, "%s %d\n", exited ? "exit" : "signal", info.si_status);
    note(id, "status", text);
    char path[256];
    if (task_path(path, sizeof path, id, "pid"))
        unlink(path);
    waitpid(child, NULL, 0);
    return exited && info.si_status < EXIT_AMBIGUOUS ? info.si_status : EXIT_AMBIGUOUS;
}

static int run(const char *id, const struct spec *spec) {
    bool tty = isatty(STDIN_FILENO);
    int go[2];
    if (pipe2(go, O_CLOEXEC) < 0)
        die(EXIT_AMBIGUOUS, "pipe: %s", strerror(errno));
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL); /* sshd's hang-up included: we decide what the payload hears */
    int signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    pid_t child = fork();
    if (child < 0)
        die(EXIT_AMBIGUOUS, "fork: %s", strerror(errno));
    if (child == 0) {
        close(go[1]);
        become_payload(spec, tty, go[0]);
    }
    char text[32];
    snprintf(text, sizeof text, "%d\n", child);
    note(id, "pid", text);
    while (tty ? getpgid(child) != child : getsid(child) != child) /* only a group that is there can be signalled */
        usleep(200);
    close(go[0]);
    (void)!write(go[1], "", 1);
    close(go[1]);
    attend(child, tty, signals);
    int code = close_books(id, child);
    end_the_rest(child);
    return code;
}

int task(int argc, char **argv) {
    const char *id = argv[0];
    make_directory(id);
    if (strcmp(argv[1], "--") == 0) {
        if (argc < 3)
            die(EXIT_USAGE, "task: no command");
        return run(id, &(struct spec){.mask = umask(0), .cwd = ".", .argv = argv + 2});
    }
    struct spec spec = read_spec(id, argv[1]);
    return run(id, &spec);
}

static char *read_note(const char *id, const char *name) {
    char path[256];
    if (!task_path(path, sizeof path, id, name))
        die(EXIT_USAGE, "bad task name");
    return read_file(path, 4096, NULL);
}

int status_of_task(const char *id) {
    char *status = read_note(id, "status"), *pid = read_note(id, "pid");
    printf("%s", status != NULL ? status : pid != NULL ? "running\n" : "absent\n");
    return 0;
}

pid_t payload_of(const char *id) {
    char *pid = read_note(id, "pid");
    return pid != NULL ? (pid_t)strtol(pid, NULL, 10) : 0;
}

static int signal_number(const char *name) {
    if (isdigit((unsigned char)name[0])) {
        char *end;
        long number = strtol(name, &end, 10);
        return *end == '\0' && number > 0 && number < NSIG ? (int)number : -1;
    }
    for (int number = 1; number < NSIG; number++) {
        const char *known = sigabbrev_np(number);
        if (known != NULL && strcmp(known, name + (strncmp(name, "SIG", 3) == 0 ? 3 : 0)) == 0)
            return number;
    }
    return -1;
}

/* Waits a while for a payload that is just being started: a signal must not be lost on the way. */
int signal_task(const char *id, const char *name) {
    int number = signal_number(name);
    if (number < 0)
        die(EXIT_USAGE, "signal: %s is not a signal", name);
    for (long long until = now_ms() + 10000; now_ms() < until; usleep(10000)) {
        if (read_note(id, "status") != NULL)
            return 0; /* ended: nobody left to tell */
        pid_t group = payload_of(id);
        if (group > 1 && kill(-group, number) == 0)
            return 0;
    }
    die(1, "signal: task %s does not run", id);
}
