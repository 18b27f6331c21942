/* Shares: sshfs in the guest talks SFTP over an ssh session to the host's sftp-server. */
#include "lrms_vm_guest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SSHFS = 8 << 20 };

/* Mounted file systems see changes from the host and from other nodes within a second. */
#define OPTIONS "passive,dcache_timeout=1,attr_timeout=1,entry_timeout=1,negative_timeout=0"

/* Since Debian's 3.7.3-1.2 sshfs hides links that are absolute or have "..", to shield its machine from the server's.
 * Here the server is the host, and the user's links are to mean what they mean there. An option that an older sshfs
 * does not know ends it, and asking it costs a process: so look for the word in the program. */
static bool hides_links(const char *sshfs) {
    size_t length;
    char *program = read_file(sshfs, MAX_SSHFS, &length);
    bool hides = program != NULL && memmem(program, length, "no_contain_symlinks", 19) != NULL;
    free(program);
    return hides;
}

static const char *find_sshfs(void) {
    static const char *const PLACES[] = {"/usr/local/bin/sshfs", "/usr/bin/sshfs", "/bin/sshfs"};
    for (size_t i = 0; i < sizeof PLACES / sizeof *PLACES; i++)
        if (access(PLACES[i], X_OK) == 0)
            return PLACES[i];
    die(127, "share: no sshfs in this image");
}

int mount_share(const char *dir64) {
    char *dir = decode64(dir64, NULL), source[4100], options[256];
    const char *sshfs = find_sshfs();
    if (dir == NULL || dir[0] != '/' || strlen(dir) > 4095)
        die(EXIT_USAGE, "share: not a directory");
    snprintf(source, sizeof source, ":%s", dir);
    /* "-o" options are split at commas, but source and mount point are whole arguments */
    snprintf(options, sizeof options, OPTIONS "%s%s", access(ROOT_FILE, F_OK) == 0 ? ",allow_root" : "",
             hides_links(sshfs) ? ",no_contain_symlinks" : "");
    execl(sshfs, "sshfs", "-f", "-o", options, source, dir, (char *)NULL);
    die(127, "share: sshfs: %s", strerror(errno));
}

/* proc(5): the mount point is the fifth field of mountinfo, blank, tab, newline and backslash as \ooo. */
static bool mounted(const char *table, const char *dir) {
    char wanted[4 * 4096 + 8], *next = wanted;
    *next++ = ' ';
    for (const char *c = dir; *c != '\0' && next < wanted + sizeof wanted - 16; c++)
        if (strchr(" \t\n\\", *c) != NULL)
            next += sprintf(next, "\\%03o", (unsigned char)*c);
        else
            *next++ = *c;
    strcpy(next, " ");
    for (const char *line = table; *line != '\0'; line = strchrnul(line, '\n') + (*strchrnul(line, '\n') != '\0')) {
        const char *end = strchrnul(line, '\n'), *found = strstr(line, wanted), *kind = strstr(line, " - fuse.sshfs ");
        if (found != NULL && found < end && kind != NULL && kind < end)
            return true;
    }
    return false;
}

int wait_mounted(int argc, char **argv) {
    long long until = now_ms() + 1000LL * atoi(argv[0]);
    for (int i = 1; i < argc; i++) {
        char *dir = decode64(argv[i], NULL), *table;
        if (dir == NULL)
            die(EXIT_USAGE, "mounted: not a directory");
        while ((table = read_file("/proc/self/mountinfo", 64 << 20, NULL)) != NULL && !mounted(table, dir)) {
            free(table);
            if (now_ms() > until)
                die(1, "share %s was not mounted in time", dir);
            usleep(10000);
        }
        free(table);
    }
    return 0;
}
