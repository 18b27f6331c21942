/* Once, at the guest's start: make the image's system fit for this one job.
 *
 * Reads what is in the seed's lrms_vm/ directory: hostname, passwd and group lines, keys, shares. No program is
 * started and nothing is interpreted: files are checked line by line and written whole.
 */
#include "lrms_vm_guest.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

/* CHANNEL_NICE: while the rest of the system still starts, the job's connection comes first; payloads run at 0. */
enum { MAX_FILE = 4 << 20, MAX_FIELD = 4096, RESTART_US = 300000, SCOPE_LOOKS = 400, CHANNEL_NICE = -10 };

struct user {
    char name[256], gecos[256], home[MAX_FIELD], shell[MAX_FIELD];
    uid_t uid;
    gid_t gid;
};

static char *seed_file(const char *seed, const char *name, size_t *length) {
    char path[MAX_FIELD];
    snprintf(path, sizeof path, "%s/%s", seed, name);
    char *text = read_file(path, MAX_FILE, length);
    if (text == NULL)
        die(EXIT_AMBIGUOUS, "boot: %s: %s", path, strerror(errno));
    return text;
}

static void write_or_die(const char *path, const void *bytes, size_t length, mode_t mode) {
    if (write_file(path, bytes, length, mode) < 0)
        die(EXIT_AMBIGUOUS, "boot: %s: %s", path, strerror(errno));
}

/* Parents are root's, 0755; what is there is left as it is. */
static bool make_parents(const char *path) {
    char part[MAX_FIELD];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part || path[0] != '/')
        return false;
    for (char *slash = part + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return false;
        *slash = '/';
    }
    return true;
}

static bool make_directory_of(const char *path, const struct user *user, mode_t mode) {
    struct stat status;
    if (lstat(path, &status) == 0)
        return S_ISDIR(status.st_mode) || S_ISLNK(status.st_mode);
    return make_parents(path) && mkdir(path, mode) == 0 && lchown(path, user->uid, user->gid) == 0;
}

static bool plain_name(const char *name) {
    static const char ALLOWED[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@\\-";
    size_t length = strlen(name);
    return length > 0 && length < 256 && name[0] != '-' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strspn(name, ALLOWED) == length;
}

static bool plain_path(const char *path) {
    if (path[0] != '/' || strlen(path) >= MAX_FIELD)
        return false;
    for (const char *next = path; *next != '\0'; next++)
        if (iscntrl((unsigned char)*next))
            return false;
    return strstr(path, "/../") == NULL && strstr(path, "/./") == NULL;
}

static bool number(const char *text, unsigned *value) {
    char *end;
    errno = 0;
    unsigned long read = strtoul(text, &end, 10);
    *value = (unsigned)read;
    return isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0 && read < 0xffffffffUL;
}

/* Splits in place at colons; returns how many fields there are (at most `most`). */
static int split(char *line, char **fields, int most) {
    int count = 0;
    for (char *next = line; next != NULL && count < most;) {
        fields[count++] = next;
        next = strchr(next, ':');
        if (next != NULL)
            *next++ = '\0';
    }
    return count;
}

static struct user read_user(const char *seed) {
    struct user user = {0};
    char *fields[8], *text = seed_file(seed, "passwd", NULL);
    text[strcspn(text, "\n")] = '\0';
    if (split(text, fields, 8) != 7 || !plain_name(fields[0]) || !number(fields[2], &user.uid) ||
        !number(fields[3], &user.gid) || user.uid == 0 || !plain_path(fields[5]))
        die(EXIT_AMBIGUOUS, "boot: the seed's passwd line is not usable");
    snprintf(user.name, sizeof user.name, "%s", fields[0]);
    for (char *next = fields[4]; *next != '\0'; next++)
        if (iscntrl((unsigned char)*next))
            *next = '?';
    snprintf(user.gecos, sizeof user.gecos, "%s", fields[4]);
    snprintf(user.home, sizeof user.home, "%s", fields[5]);
    /* sshd passes commands through this shell. Ours are plain words for any of them; sh reads no start-up file. */
    snprintf(user.shell, sizeof user.shell, "/bin/sh");
    return user;
}

/* `path` without the lines whose first field is one of `names`, or whose third is one of `ids`; then `added`. */
static void replace_lines(const char *path, char *const *names, char *const *ids, const char *added, mode_t mode) {
    size_t length = 0, used = 0;
    char *old = read_file(path, MAX_FILE, &length);
    char *fresh = allocate(length + strlen(added) + 2, 1);
    for (char *line = old; line != NULL && *line != '\0';) {
        char *end = strchrnul(line, '\n'), copy[MAX_FIELD], *fields[4] = {"", "", "", ""};
        size_t size = (size_t)(end - line);
        snprintf(copy, sizeof copy, "%.*s", (int)(size < sizeof copy ? size : sizeof copy - 1), line);
        split(copy, fields, 4);
        bool drop = false;
        for (char *const *name = names; *name != NULL; name++)
            drop |= strcmp(*name, fields[0]) == 0;
        for (char *const *id = ids; *id != NULL; id++)
            drop |= strcmp(*id, fields[2]) == 0;
        if (!drop && size > 0) {
            memcpy(fresh + used, line, size);
            used += size;
            fresh[used++] = '\n';
        }
        line = *end != '\0' ? end + 1 : end;
    }
    used = (size_t)(stpcpy(fresh + used, added) - fresh);
    write_or_die(path, fresh, used, mode);
    free(old);
    free(fresh);
}

static void add_user(const struct user *user) {
    char line[2 * MAX_FIELD + 1024], id[16], *names[] = {(char *)user->name, NULL}, *ids[] = {id, NULL}, *none[] = {NULL};
    snprintf(id, sizeof id, "%u", user->uid);
    snprintf(line, sizeof line, "%s:x:%u:%u:%s:%s:%s\n", user->name, user->uid, user->gid, user->gecos, user->home,
             user->shell);
    replace_lines("/etc/passwd", names, ids, line, 0644);
    snprintf(line, sizeof line, "%s:*:19000:0:99999:7:::\n", user->name); /* no password, and not locked for sshd */
    replace_lines("/etc/shadow", names, none, line, 0600);
}

static void add_groups(const char *seed) {
    size_t length, count = 0, used = 0;
    char *text = seed_file(seed, "group", &length), *added = allocate(length + 2, 1);
    char **names = allocate(length / 4 + 2, sizeof(char *)), **ids = allocate(length / 4 + 2, sizeof(char *));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char *fields[5];
        unsigned gid;
        if (split(line, fields, 5) != 4 || !plain_name(fields[0]) || !number(fields[2], &gid) ||
            strspn(fields[3], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@\\,-") !=
                strlen(fields[3])) {
            warn_line("boot: a group line of the seed is not usable; left out");
            continue;
        }
        if (gid == 0)
            continue; /* root's group in the guest is the guest's */
        used += (size_t)sprintf(added + used, "%s:x:%u:%s\n", fields[0], gid, fields[3]);
        names[count] = fields[0];
        ids[count++] = fields[2];
    }
    replace_lines("/etc/group", names, ids, added, 0644);
}

static void set_hostname(const char *seed) {
    char *name = seed_file(seed, "hostname", NULL);
    name[strcspn(name, "\n")] = '\0';
    if (!plain_name(name) || strlen(name) > 64 || strpbrk(name, "@_\\") != NULL)
        die(EXIT_AMBIGUOUS, "boot: the seed's hostname is not usable");
    if (sethostname(name, strlen(name)) < 0)
        warn_line("boot: hostname: %s", strerror(errno));
    char line[256];
    snprintf(line, sizeof line, "%s\n", name);
    write_or_die("/etc/hostname", line, strlen(line), 0644);
    snprintf(line, sizeof line, "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t%s\n", name);
    write_or_die("/etc/hosts", line, strlen(line), 0644);
}

static void make_home(struct user *user) {
    if (!make_directory_of(user->home, user, 0700)) {
        snprintf(user->home, sizeof user->home, "/home/%s", user->name);
        if (!make_directory_of(user->home, user, 0700))
            warn_line("boot: %s: %s", user->home, strerror(errno));
    }
    write_or_die(HOME_FILE, user->home, strlen(user->home), 0644);
}

static void make_mount_points(const char *seed, const struct user *user) {
    char *text = seed_file(seed, "shares", NULL);
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (!plain_path(line) || !make_directory_of(line, user, 0700))
            warn_line("boot: share %s: no mount point: %s", line, strerror(errno));
        else if (chown(line, user->uid, user->gid) < 0) /* fusermount mounts only on what the user owns */
            warn_line("boot: share %s: %s", line, strerror(errno));
    }
}

/* sshd_config(5). One user, one key, no way in but the channel, nothing forwarded from the guest but to a launcher's socket. */
static void write_ssh_files(const char *seed, const struct user *user) {
    size_t length;
    char *text = seed_file(seed, "ssh_host_ed25519_key", &length), path[MAX_FIELD], config[4096];
    write_or_die(RUN_DIR "/ssh_host_ed25519_key", text, length, 0600);
    text = seed_file(seed, "authorized_keys", &length);
    mkdir(RUN_DIR "/keys", 0755);
    snprintf(path, sizeof path, RUN_DIR "/keys/%s", user->name);
    write_or_die(path, text, length, 0644);
    int size = snprintf(config, sizeof config,
                        "HostKey " RUN_DIR "/ssh_host_ed25519_key\n"
                        "AuthorizedKeysFile " RUN_DIR "/keys/%%u\n"
                        "AuthenticationMethods publickey\n"
                        "PubkeyAuthentication yes\n"
                        "PasswordAuthentication no\n"
                        "KbdInteractiveAuthentication no\n"
                        "HostbasedAuthentication no\n"
                        "PermitRootLogin no\n"
                        "UsePAM no\n"
                        "PermitUserEnvironment no\n"
                        "PermitUserRC no\n"
                        "X11Forwarding no\n"
                        "AllowAgentForwarding no\n"
                        "AllowTcpForwarding remote\n" /* "no" would forbid that socket, too; only the host can ask for any */
                        "PermitTunnel no\n"
                        "AllowStreamLocalForwarding yes\n"
                        "StreamLocalBindMask 0177\n"
                        "StreamLocalBindUnlink yes\n"
                        "MaxSessions 1000\n"
                        "Compression no\n"
                        "PrintMotd no\n"
                        "PrintLastLog no\n"
                        "Banner none\n"
                        "UseDNS no\n"
                        "PidFile none\n"
                        "LogLevel ERROR\n");
    if (strpbrk(user->name, "@\\") == NULL) /* AllowUsers would take these apart; the key file is per user anyway */
        size += snprintf(config + size, sizeof config - (size_t)size, "AllowUsers %s\n", user->name);
    write_or_die(RUN_DIR "/sshd_config", config, (size_t)size, 0600);
    mkdir("/run/sshd", 0755); /* sshd's own empty directory */
}

/* The batch system's own way to start tasks, for whoever types it; an image's own program stays. */
static void offer_launcher(const char *seed) {
    char path[MAX_FIELD], *name;
    snprintf(path, sizeof path, "%s/launcher", seed);
    if ((name = read_file(path, MAX_FIELD, NULL)) == NULL)
        return;
    name[strcspn(name, "\n")] = '\0';
    if (!is_launcher(name)) {
        warn_line("boot: launcher %.20s: unknown", name);
        return;
    }
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", (const char *const[]){"/usr/bin", "/bin"}[i], name);
        if (access(path, F_OK) == 0)
            return;
    }
    snprintf(path, sizeof path, "/usr/local/bin/%s", name);
    if (symlink(PROGRAM, path) < 0 && errno != EEXIST)
        warn_line("boot: %s: %s", path, strerror(errno));
}

/* initramfs-tools' init mounts /run so that nothing in it can be run; root's own programs are as good there as elsewhere. */
static void let_programs_run(void) {
    struct statvfs found;
    if (statvfs("/run", &found) == 0 && (found.f_flag & ST_NOEXEC) != 0 &&
        mount(NULL, "/run", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV, NULL) < 0)
        warn_line("boot: /run: no program can be run there: %s", strerror(errno));
}

static void install_ourselves(void) {
    let_programs_run();
    size_t length;
    char *program = read_file("/proc/self/exe", 64 << 20, &length);
    if (program == NULL)
        die(EXIT_AMBIGUOUS, "boot: /proc/self/exe: %s", strerror(errno));
    write_or_die(PROGRAM, program, length, 0755);
    mkdir("/usr/local/bin", 0755);
}

static void make_fit(const char *seed) {
    umask(022);
    char *version = seed_file(seed, "version", NULL);
    if (strcmp(version, "1\n") != 0 && strcmp(version, "1") != 0)
        die(EXIT_AMBIGUOUS, "boot: the seed is of version %.20s, expected 1", version);
    take_randomness(seed);
    mkdir(RUN_DIR, 0755);
    mkdir(TASKS_DIR, 01777);
    if (chmod(RUN_DIR, 0755) < 0 || chmod(TASKS_DIR, 01777) < 0)
        die(EXIT_AMBIGUOUS, "boot: " TASKS_DIR ": %s", strerror(errno));
    install_ourselves();
    offer_launcher(seed);
    set_hostname(seed);
    struct user user = read_user(seed);
    make_home(&user);
    add_groups(seed);
    add_user(&user);
    make_mount_points(seed, &user);
    write_ssh_files(seed, &user);
    give_root(seed, user.gid);
    set_address(seed);
    chmod("/dev/fuse", 0666); /* what udev would do; shares are mounted by the user */
}

int boot(const char *seed, const char *device) {
    make_fit(seed);
    return run_channel(device);
}

/* netdevice(7). A payload may want its own address before systemd has come that far. */
static void bring_loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return;
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        warn_line("boot: lo: %s", strerror(errno));
    close(fd);
}

/* Whoever was there before systemd, it takes into init.scope (cgroup v2), and where the kernel ends one process in a scope
 * for lack of memory, systemd ends them all: a payload's would take the channel along. So out again, once it is done. */
static void leave_init_scope(void) {
    static const char SCOPE[] = "/sys/fs/cgroup/init.scope/cgroup.procs", OURS[] = "/sys/fs/cgroup/lrms_vm";
    for (int looks = 0, alone = 0; looks < SCOPE_LOOKS && alone < 10; looks++, usleep(RESTART_US)) {
        char pids[4096] = "";
        int from = open(SCOPE, O_RDONLY | O_CLOEXEC);
        if (from < 0)
            continue; /* no systemd yet, or cgroups of version 1, where it is not told of such an end */
        ssize_t got = read(from, pids, sizeof pids - 1);
        close(from);
        mkdir(OURS, 0755);
        int to = open("/sys/fs/cgroup/lrms_vm/cgroup.procs", O_WRONLY | O_CLOEXEC);
        bool moved = false;
        for (char *pid = strtok(got > 0 ? pids : "", "\n"); to >= 0 && pid != NULL; pid = strtok(NULL, "\n"))
            moved |= strcmp(pid, "1") != 0 && write(to, pid, strlen(pid)) > 0; /* one may have ended meanwhile */
        alone = moved ? 0 : alone + 1;
        if (to >= 0)
            close(to);
    }
}

/* A process of its own that keeps the channel's program running, as systemd would: it is not there yet. */
static void keep_channel(void) {
    setsid();
    if (fork() == 0) {
        leave_init_scope();
        _exit(0);
    }
    errno = 0;
    if (setpriority(PRIO_PROCESS, 0, CHANNEL_NICE) < 0)
        warn_line("boot: priority: %s", strerror(errno));
    for (;; usleep(RESTART_US)) {
        pid_t child = fork();
        if (child == 0)
            _exit(run_channel(NULL));
        while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    }
}

int early(const char *seed) {
    make_fit(seed);
    bring_loopback_up();
    write_or_die(EARLY_FILE, "", 0, 0644); /* lrms-vm-guest.service then has nothing to do */
    pid_t child = fork();
    if (child < 0)
        die(EXIT_AMBIGUOUS, "boot: fork: %s", strerror(errno));
    if (child == 0)
        keep_channel();
    return 0;
}
