/* The guest's address, as the host chose it: lrms_vm/address of the seed has "MAC ADDRESS PREFIX GATEWAY [DNS...]".
 *
 * Set here and not by whatever the image has: the host lets this address pass and no other, and no image needs a DHCP
 * client. By netdevice(7): an image may lack every tool.
 */
#include "lrms_vm_guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_WORDS = 7, WAIT_MS = 10000, POLL_US = 20000 };

static bool by_mac(const char *mac, char name[IFNAMSIZ]) {
    bool found = false;
    DIR *devices = opendir("/sys/class/net");
    for (struct dirent *entry; !found && devices != NULL && (entry = readdir(devices)) != NULL;) {
        char path[512];
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= IFNAMSIZ)
            continue;
        snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
        char *text = read_file(path, 4096, NULL);
        if (text != NULL && strncasecmp(text, mac, 17) == 0) {
            strcpy(name, entry->d_name);
            found = true;
        }
        free(text);
    }
    if (devices != NULL)
        closedir(devices);
    return found;
}

static bool set(int fd, unsigned long request, const char *name, struct in_addr address) {
    struct ifreq what = {0};
    memcpy(what.ifr_name, name, IFNAMSIZ);
    struct sockaddr_in *where = (struct sockaddr_in *)&what.ifr_addr;
    where->sin_family = AF_INET;
    where->sin_addr = address;
    return ioctl(fd, request, &what) == 0;
}

static bool set_up(int fd, const char *name) {
    struct ifreq what = {0};
    memcpy(what.ifr_name, name, IFNAMSIZ);
    if (ioctl(fd, SIOCGIFFLAGS, &what) < 0)
        return false;
    what.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &what) == 0;
}

static bool set_gateway(int fd, struct in_addr gateway) {
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    ((struct sockaddr_in *)&route.rt_dst)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_genmask)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_gateway)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_gateway)->sin_addr = gateway;
    return ioctl(fd, SIOCADDRT, &route) == 0 || errno == EEXIST;
}

static void write_resolv_conf(char *const *servers) {
    char text[512];
    size_t used = 0;
    for (struct in_addr checked; *servers != NULL && used < sizeof text - 64; servers++)
        if (inet_pton(AF_INET, *servers, &checked) == 1)
            used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %s\n", *servers);
    if (used > 0 && write_file("/etc/resolv.conf", text, used, 0644) < 0) /* in place of a link, too */
        warn_line("boot: /etc/resolv.conf: %s", strerror(errno));
}

void set_address(const char *seed) {
    char path[4096], *words[MAX_WORDS + 1] = {NULL}, name[IFNAMSIZ] = "";
    snprintf(path, sizeof path, "%s/address", seed);
    char *text = read_file(path, 4096, NULL);
    if (text == NULL)
        return; /* no network, or one that is not the host's to number */
    size_t count = 0;
    for (char *word = strtok(text, " \n"); word != NULL && count < MAX_WORDS; word = strtok(NULL, " \n"))
        words[count++] = word;
    struct in_addr address, gateway, mask;
    unsigned long prefix = count > 2 ? strtoul(words[2], NULL, 10) : 0;
    if (count < 4 || inet_pton(AF_INET, words[1], &address) != 1 || inet_pton(AF_INET, words[3], &gateway) != 1 ||
        prefix < 1 || prefix > 31)
        die(EXIT_AMBIGUOUS, "boot: the seed's address is not usable");
    mask.s_addr = htonl(~0U << (32 - prefix));
    long long until = now_ms() + WAIT_MS;
    while (!by_mac(words[0], name) && now_ms() < until)
        usleep(POLL_US);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (name[0] == '\0' || fd < 0)
        warn_line("boot: no interface %s: no network", words[0]);
    else if (!set(fd, SIOCSIFADDR, name, address) || !set(fd, SIOCSIFNETMASK, name, mask) || !set_up(fd, name) ||
             !set_gateway(fd, gateway))
        warn_line("boot: %s: %s: no network", name, strerror(errno));
    else
        write_resolv_conf(words + 4);
    snprintf(path, sizeof path, "%s/channel", seed);
    size_t length;
    char *place = read_file(path, 4096, &length);
    if (place != NULL && write_file(CHANNEL_FILE, place, length, 0644) < 0)
        warn_line("boot: " CHANNEL_FILE ": %s", strerror(errno));
    free(place);
    if (fd >= 0)
        close(fd);
    free(text);
}
