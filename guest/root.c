/* lrms-vm-root COMMAND...: root inside this guest, for its one user, where the tier of the site's rule gives it.
 *
 * Only such a seed has the file `root`; only then boot puts a setuid copy of this program in the user's path, which the
 * user's group may execute. Whom it makes root owns nothing but a throw-away guest: on the host's side of the shares
 * root is the job's user still.
 */
#include "lrms_vm_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FUSE_CONF = 1 << 16 };

/* fuse(8), mount.fuse3: a user's mount may let root in only where this file says so. */
static void let_root_into_shares(void) {
    static const char LINE[] = "\nuser_allow_other\n";
    size_t length = 0;
    char *old = read_file(FUSE_CONF, MAX_FUSE_CONF, &length), *fresh = allocate(length + sizeof LINE, 1);
    if (old != NULL)
        memcpy(fresh, old, length);
    memcpy(fresh + length, LINE, sizeof LINE);
    if (write_file(FUSE_CONF, fresh, length + sizeof LINE - 1, 0644) < 0 || write_file(ROOT_FILE, "", 0, 0644) < 0)
        warn_line("boot: " FUSE_CONF ": %s; root will not see the shares", strerror(errno));
    free(old);
    free(fresh);
}

void give_root(const char *seed, gid_t gid) {
    char path[4096];
    size_t length;
    snprintf(path, sizeof path, "%s/root", seed);
    if (access(path, F_OK) < 0) {
        unlink(ROOT_PROGRAM); /* not this job's, if the image was saved from another */
        return;
    }
    char *program = read_file("/proc/self/exe", 64 << 20, &length);
    if (program == NULL || write_file(ROOT_PROGRAM, program, length, 0700) < 0 || chown(ROOT_PROGRAM, 0, gid) < 0 ||
        chmod(ROOT_PROGRAM, 04750) < 0) /* after chown, which takes the bit away */
        warn_line("boot: " ROOT_PROGRAM ": %s", strerror(errno));
    free(program);
    let_root_into_shares();
}

int become_root(int argc, char **argv) {
    if (argc < 2)
        die(EXIT_USAGE, "usage: lrms-vm-root COMMAND [ARGUMENT...]");
    if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        die(EXIT_REFUSED, "lrms-vm-root: %s; this image's rule gives no root inside", strerror(errno));
    execvp(argv[1], argv + 1);
    die(errno == ENOENT ? 127 : 126, "lrms-vm-root: %s: %s", argv[1], strerror(errno));
}
