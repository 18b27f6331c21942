/* Random bytes of the host's for a kernel that has none yet. random(4), RNDADDENTROPY.
 *
 * A guest without a virtio-rng, as every one of Xen's, on a processor without RDRAND, makes its own by waiting for
 * its clock: sshd, the first who asks, then stands for a second in getrandom(2).
 */
#include "lrms_vm_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { RANDOM_BYTES = 64 };

void take_randomness(const char *seed) {
    char path[512];
    size_t length = 0;
    snprintf(path, sizeof path, "%s/random", seed);
    char *bytes = read_file(path, 4096, &length);
    if (bytes == NULL || length != RANDOM_BYTES) {
        warn_line("boot: %s: %s", path, bytes == NULL ? strerror(errno) : "not 64 bytes");
        free(bytes);
        return;
    }
    struct rand_pool_info *pool = allocate(1, sizeof *pool + RANDOM_BYTES);
    pool->entropy_count = RANDOM_BYTES * 8;
    pool->buf_size = RANDOM_BYTES;
    memcpy(pool->buf, bytes, RANDOM_BYTES);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, pool) < 0)
        warn_line("boot: /dev/urandom: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    explicit_bzero(pool->buf, RANDOM_BYTES);
    explicit_bzero(bytes, RANDOM_BYTES);
    free(pool);
    free(bytes);
}
