/* The guest's half of lrms_vm: one static program, carried on the seed so that both halves always match.
 *
 *   guest boot SEEDDIR [DEVICE]   root, once at boot: users, keys, mount points; then `channel`
 *   guest early SEEDDIR           root, from the initrd: the same before systemd; leaves a process that keeps `channel`
 *   guest channel [DEVICE]        root: hello/ready/go, then sshd on the channel; for ever
 *   guest prepare ID NAME         user: keep stdin as tasks/ID/NAME (the job's script, or a long task description)
 *   guest task ID SPEC            user: run the payload; see task.c
 *   guest signal ID NAME          user: signal the payload's process group
 *   guest follow ID               user: stop the task while stdin, from which a byte comes each second, is silent
 *   guest status ID               user: how the payload ended
 *   guest share DIR64             user: sshfs on stdin and stdout, mounted on DIR
 *   guest mounted SECONDS DIR64.. user: wait until all are mounted
 *   srun ..., pbsdsh ...          user: asks the host to run the real one; see launch.c
 *   lrms-vm-root COMMAND...       user: as root inside, where the site gives that; see root.c
 *   guest connect PLACE           on the host, user: ssh's way to the guest; a socket's path or tcp:ADDRESS:PORT
 *
 * Everything that comes from the seed or over the channel is data: checked, never given to a shell.
 */
#ifndef LRMS_VM_GUEST_H
#define LRMS_VM_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define RUN_DIR "/run/lrms_vm"
#define TASKS_DIR RUN_DIR "/tasks"
#define PROGRAM RUN_DIR "/guest"
#define HOME_FILE RUN_DIR "/home"
#define EARLY_FILE RUN_DIR "/early"
#define CHANNEL_FILE RUN_DIR "/channel"
#define ROOT_FILE RUN_DIR "/root"
#define ROOT_PROGRAM "/usr/local/bin/lrms-vm-root"
#define FUSE_CONF "/etc/fuse.conf"
#define PORT_NAME "org.lrms_vm.channel.0"

enum { EXIT_USAGE = 64, EXIT_LOST = 70, EXIT_REFUSED = 77, EXIT_AMBIGUOUS = 255 };

/* main.c: the few things every part needs */
__attribute__((noreturn, format(printf, 2, 3))) void die(int code, const char *format, ...);
__attribute__((format(printf, 1, 2))) void warn_line(const char *format, ...);
char *read_all(int fd, size_t limit, size_t *length);                     /* NUL appended; NULL with errno set */
char *read_file(const char *path, size_t limit, size_t *length);          /* same */
int write_all(int fd, const void *bytes, size_t length);                  /* blocking write of everything; 0 or -1 */
int write_file(const char *path, const void *bytes, size_t length, mode_t mode); /* by rename; 0 or -1 */
char *decode64(const char *text, size_t *length);                         /* NUL appended; NULL when malformed */
void *allocate(size_t count, size_t size);
long long now_ms(void);

int boot(const char *seed, const char *device);
int early(const char *seed);
int run_channel(const char *device);
int connect_to(const char *place);
int prepare(const char *id, const char *name);
int task(int argc, char **argv);
int signal_task(const char *id, const char *name);
pid_t payload_of(const char *id); /* 0: not yet, or no more */
int follow(const char *id);
int status_of_task(const char *id);
int mount_share(const char *dir64);
int wait_mounted(int argc, char **argv);
bool is_launcher(const char *name);
int launch(const char *name, char **argv);
void take_randomness(const char *seed);
void set_address(const char *seed);
void give_root(const char *seed, gid_t gid);
int become_root(int argc, char **argv);

#endif
