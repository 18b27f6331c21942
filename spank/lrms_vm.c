/*
 * lrms_vm's SPANK plugin: takes the --vm-* options where jobs are submitted, and puts the payload into the guest
 * where they run.
 *
 *   sbatch, salloc, srun   options -> job control variables, which root's hooks see as SPANK_VM_IMAGE ...
 *   slurmstepd             task_init, as the job's user: the prologue's verdict -> `lrms-vm exec` instead of the payload
 *
 * What a step sees of options and environment can be forged by its user (docs/slurm.md). So it only ever
 * leads to a refusal; the root-owned verdict alone leads to a guest.
 *
 *   verdict there                  the payload goes to `exec=` (which prints the reason, if the verdict says refused)
 *   verdict there, not only root's nothing runs
 *   none, but a VM was asked for   nothing runs
 *   none, nothing asked            an ordinary job, untouched
 *
 * Arguments in plugstack.conf: exec=PROGRAM verdicts=DIRECTORY. Slurm before 23.11 has no way to change a task's
 * words, so there we execve(2) ourselves, and the job's own environment travels in a memfd: its LD_PRELOAD and
 * PYTHONPATH are meant for the payload, not for our program.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "spank_api.h"

#ifndef TRUSTED_OWNER
#define TRUSTED_OWNER 0
#endif

#define EXPORTED __attribute__((visibility("default")))
#define MAX_VALUE 4096 /* MAX_OPTION_LENGTH of request.py */
#define MAX_REFERENCE 1024
#define MAX_KEY 256

typedef int spank_hook(struct spank_handle *spank, int count, char *arguments[]);
EXPORTED spank_hook slurm_spank_init, slurm_spank_init_post_opt, slurm_spank_task_init;

/* The words of request.py OPTIONS. */
static const struct {
	const char *name, *variable, *argument, *usage;
} OPTIONS[] = {
	{"vm-image", "VM_IMAGE", "REF",
	 "run the job in a virtual machine of this signed image: NAME, NAME@VERSION or sha256:HEX "
	 "(`lrms-vm image list` shows what the site has)"},
	{"vm-memory", "VM_MEMORY", "SIZE", "the guest's memory, e.g. 2G; at most, and by default, what the job was given"},
	{"vm-cpus", "VM_CPUS", "N", "the guest's cpus; at most, and by default, what the job was given"},
	{"vm-network", "VM_NETWORK", "NET", "none, nat or bridge:NAME, if the site allows it"},
	{"vm-share", "VM_SHARE", "DIRS", "directories the guest sees beside the working directory, e.g. /data,/sw"},
	{"vm-kernel", "VM_KERNEL", "NAME", "one of the site's kernels"},
	{"vm-env", "VM_ENV", "NAMES", "variables the payload gets that are dropped otherwise, e.g. X509_USER_PROXY,SITE"},
};
enum { OPTION_COUNT = sizeof(OPTIONS) / sizeof(OPTIONS[0]), IMAGE = 0 };

static struct {
	const char *exec;
	const char *verdicts;
	char node[128];
	char given[OPTION_COUNT][MAX_VALUE + 1]; /* empty: not given */
} self = {.verdicts = "/run/lrms_vm/verdicts"};

/* ---- arguments of plugstack.conf */

static int read_arguments(int count, char *arguments[])
{
	int bad = 0;

	for (int i = 0; i < count; i++) {
		if (strncmp(arguments[i], "exec=/", strlen("exec=/")) == 0)
			self.exec = arguments[i] + strlen("exec=");
		else if (strncmp(arguments[i], "verdicts=/", strlen("verdicts=/")) == 0)
			self.verdicts = arguments[i] + strlen("verdicts=");
		else {
			api_error("lrms_vm: plugstack.conf: '%s' is neither exec=/PROGRAM nor verdicts=/DIRECTORY", arguments[i]);
			bad = -1;
		}
	}
	return bad;
}

/* ---- where jobs are submitted */

/* The letters of image.py: carriers mangle commas, "=", blanks and quotes. The node reads it again, and strictly. */
static int is_reference(const char *text)
{
	if (strlen(text) > MAX_REFERENCE || !(isalnum((unsigned char)text[0]) || text[0] == '/') || strstr(text, ".."))
		return 0;
	for (const char *c = text; *c; c++)
		if (!isascii(*c) || !(isalnum((unsigned char)*c) || strchr("._:/@+-", *c)))
			return 0;
	return 1;
}

static int is_value(const char *text)
{
	if (text[0] == '\0' || strlen(text) > MAX_VALUE)
		return 0;
	for (const char *c = text; *c; c++)
		if (iscntrl((unsigned char)*c))
			return 0;
	return 1;
}

/* Called by Slurm for each option that is given. -1 ends the submission; in slurmstepd nothing may fail. */
static int take_option(int which, const char *text, int remote)
{
	if (remote || which < 0 || which >= OPTION_COUNT)
		return 0;
	if (which == IMAGE && (text == NULL || !is_reference(text))) {
		api_error("--vm-image: '%.80s' is not an image reference (NAME, NAME@VERSION, sha256:HEX, an absolute path or "
			  "an http(s) URL; letters, digits and ._:/@+-)", text ? text : "");
		return -1;
	}
	if (text == NULL || !is_value(text)) {
		api_error("--%s: expected 1 to %d printable characters", OPTIONS[which].name, MAX_VALUE);
		return -1;
	}
	snprintf(self.given[which], sizeof(self.given[which]), "%s", text);
	return 0;
}

/* Options that were not given may have a default: SBATCH_VM_IMAGE, SALLOC_VM_IMAGE, SLURM_VM_IMAGE (srun). */
static int take_default(int which, const char *command)
{
	char name[64];
	const char *text;

	snprintf(name, sizeof(name), "%s_%s", command, OPTIONS[which].variable);
	text = getenv(name);
	if (text == NULL || text[0] == '\0' || self.given[which][0] != '\0')
		return 0;
	return take_option(which, text, 0);
}

static int take_defaults(enum api_place place)
{
	const char *command = place == API_SRUN ? "SLURM" : strcmp(program_invocation_short_name, "salloc") ? "SBATCH" : "SALLOC";

	if (place == API_SRUN && getenv("SLURM_JOB_ID"))
		return 0; /* a step of a job: whether it has a guest was decided when the job was made */
	for (int i = 0; i < OPTION_COUNT; i++)
		if (take_default(i, command) != 0)
			return -1;
	return 0;
}

/* A submission from inside a job makes a new job: what Slurm exported for the old one must not follow it there. */
static void forget_outer_job(void)
{
	static const char outer[] = "SLURM_SPANK_";
	char name[128];

	for (int i = 0; i < OPTION_COUNT; i++) {
		snprintf(name, sizeof(name), "%s%s", outer, OPTIONS[i].variable);
		unsetenv(name);
		snprintf(name, sizeof(name), "%s_SLURM_SPANK_OPTION_lrms_vm_%s", outer, OPTIONS[i].name);
		for (char *c = name; *c; c++)
			if (*c == '-')
				*c = '_';
		unsetenv(name);
		unsetenv(name + strlen(outer));
	}
}

int slurm_spank_init(struct spank_handle *spank, int count, char *arguments[])
{
	enum api_place place = api_place();
	int bad = read_arguments(count, arguments);
	const char *node = getenv("SLURMD_NODENAME"); /* in slurmstepd: set by itself, before any of the job's */

	if (place == API_SLURMD && self.exec == NULL) {
		api_error("lrms_vm: plugstack.conf: no exec=/PROGRAM");
		bad = -1;
	}
	if (place == API_STEPD && node != NULL)
		snprintf(self.node, sizeof(self.node), "%s", node);
	if (place == API_SUBMIT)
		forget_outer_job();
	for (int i = 0; i < OPTION_COUNT; i++)
		if (api_option_register(spank, OPTIONS[i].name, OPTIONS[i].argument, OPTIONS[i].usage, i, take_option) != 0) {
			api_error("lrms_vm: Slurm does not take --%s", OPTIONS[i].name);
			bad = -1;
		}
	/* A failure in slurmstepd would drain the node and call the job COMPLETED: task_init refuses instead. */
	return place == API_STEPD ? 0 : bad;
}

int slurm_spank_init_post_opt(struct spank_handle *spank, int count, char *arguments[])
{
	enum api_place place = api_place();

	(void)count;
	(void)arguments;
	if (place != API_SUBMIT && place != API_SRUN)
		return 0;
	if (take_defaults(place) != 0)
		return -1;
	for (int i = 0; i < OPTION_COUNT; i++) {
		if (self.given[i][0] == '\0')
			continue;
		if (self.given[IMAGE][0] == '\0') {
			api_error("--%s: options for a VM but no --vm-image", OPTIONS[i].name);
			return -1;
		}
		if (api_job_control_set(spank, OPTIONS[i].variable, self.given[i]) != 0) {
			api_error("lrms_vm: Slurm does not pass --%s on", OPTIONS[i].name);
			return -1;
		}
	}
	return 0;
}

/* ---- where they run, as the job's user */

/* Print one sentence on the job's stderr and end the task. */
static int refuse(int code, const char *why)
{
	dprintf(STDERR_FILENO, "lrms_vm: %s\n", why);
	api_end(code);
	return -1;
}

/* lrms_vm:NAME as a word of the job's comment: the carrier for submit hosts without this plugin. */
static int comment_asks(const char *comment)
{
	for (const char *at = comment; (at = strstr(at, "lrms_vm:")) != NULL; at++)
		if (at == comment || strchr(" \t\n,;", at[-1]))
			return 1;
	return 0;
}

static int vm_was_asked_for(struct spank_handle *spank)
{
	char name[64], value[MAX_VALUE];

	for (int i = 0; i < OPTION_COUNT; i++) {
		snprintf(name, sizeof(name), "SLURM_SPANK_%s", OPTIONS[i].variable);
		if (api_option_seen(spank, OPTIONS[i].name) || api_job_variable(spank, name, value, sizeof(value)))
			return 1;
	}
	return api_job_variable(spank, "SLURM_JOB_COMMENT", value, sizeof(value)) && comment_asks(value);
}

/* slurmstepd says which node it serves. Should a Slurm not say, the only verdict of this job is the one. -1: none or many. */
static int find_by_job(int directory, uint32_t job_id, char name[MAX_KEY])
{
	char prefix[32];
	int copy = dup(directory), found = 0;
	DIR *entries = copy < 0 ? NULL : fdopendir(copy);

	if (entries == NULL)
		return -1;
	snprintf(prefix, sizeof(prefix), "slurm-%u.", job_id);
	for (const struct dirent *entry; (entry = readdir(entries)) != NULL;)
		if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0 && strlen(entry->d_name) < MAX_KEY) {
			strcpy(name, entry->d_name);
			found++;
		}
	closedir(entries);
	if (found == 0)
		errno = ENOENT;
	else if (found > 1)
		errno = ENOTUNIQ;
	return found == 1 ? 0 : -1;
}

static int only_root_writes(int fd, mode_t kind)
{
	struct stat status;

	return fstat(fd, &status) == 0 && (status.st_mode & S_IFMT) == kind && status.st_uid == TRUSTED_OWNER &&
	       (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

enum verdict { NO_VERDICT, VERDICT, UNTRUSTED };

/* Look for this job's verdict on this node; its path goes to `path`. Leaves no descriptor open. */
static enum verdict find_verdict(uint32_t job_id, char *path, size_t size)
{
	char name[MAX_KEY];
	enum verdict answer = UNTRUSTED;
	int file = -1, directory = open(self.verdicts, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (directory < 0)
		return errno == ENOENT ? NO_VERDICT : UNTRUSTED;
	if (!only_root_writes(directory, S_IFDIR))
		goto out;
	if (self.node[0] == '\0') {
		if (find_by_job(directory, job_id, name) != 0) {
			answer = errno == ENOENT ? NO_VERDICT : UNTRUSTED;
			goto out;
		}
	} else if (strchr(self.node, '/') ||
		   snprintf(name, sizeof(name), "slurm-%u.%s.json", job_id, self.node) >= (int)sizeof(name))
		goto out;
	file = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (file < 0) {
		answer = errno == ENOENT ? NO_VERDICT : UNTRUSTED;
		goto out;
	}
	if (only_root_writes(file, S_IFREG) && snprintf(path, size, "%s/%s", self.verdicts, name) < (int)size)
		answer = VERDICT;
	close(file);
out:
	close(directory);
	return answer;
}

/* The environment, each variable ended by a NUL, in a file without a name; -1 with errno. */
static int environment_file(char *const environment[])
{
	int fd = memfd_create("lrms_vm-environment", 0); /* stays open for exec= */

	if (fd < 0)
		return -1;
	for (int i = 0; environment[i] != NULL; i++) {
		const char *at = environment[i];
		size_t left = strlen(at) + 1;

		while (left > 0) {
			ssize_t done = write(fd, at, left);
			if (done < 0 && errno == EINTR)
				continue;
			if (done <= 0) {
				close(fd);
				return -1;
			}
			at += done;
			left -= (size_t)done;
		}
	}
	if (lseek(fd, 0, SEEK_SET) != 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* PROGRAM exec --verdict FILE [--script] --env-fd N -- ORIGINAL WORDS */
static int become_exec(const char *verdict, enum api_step step, char *const argv[], char *const environment[])
{
	static char *const clean[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
				      "LC_ALL=C.UTF-8", NULL};
	char number[16], sentence[512];
	size_t count = 0, at = 0;
	int fd = environment_file(environment);
	const char **words;

	while (argv[count] != NULL)
		count++;
	words = calloc(count + 9, sizeof(*words));
	if (fd < 0 || words == NULL) {
		free(words);
		return refuse(EX_UNAVAILABLE, "this node has no memory left to start the payload in its guest");
	}
	snprintf(number, sizeof(number), "%d", fd);
	words[at++] = self.exec;
	words[at++] = "exec";
	words[at++] = "--verdict";
	words[at++] = verdict;
	if (step == API_STEP_BATCH)
		words[at++] = "--script";
	words[at++] = "--env-fd";
	words[at++] = number;
	words[at++] = "--";
	memcpy(words + at, argv, count * sizeof(*words));
	api_become(self.exec, (char *const *)words, clean);
	snprintf(sentence, sizeof(sentence), "this node cannot start %.300s: %s", self.exec, strerror(errno));
	free(words);
	close(fd);
	return refuse(EX_UNAVAILABLE, sentence);
}

static int to_guest(struct spank_handle *spank, const char *verdict)
{
	enum api_step step;
	char **argv, **environment;

	if (self.exec == NULL)
		return refuse(EX_CONFIG, "this node's plugstack.conf does not say exec=/PROGRAM, so the payload cannot be put "
					 "into its guest; tell your site's administrators");
	if (api_step(spank, &step) != 0 || api_argv(spank, &argv) != 0 || api_environment(spank, &environment) != 0)
		return refuse(EX_UNAVAILABLE, "Slurm does not say what to run");

	const char *words[] = {self.exec, "exec", "--verdict", verdict, step == API_STEP_BATCH ? "--script" : "--", "--"};
	switch (api_prepend(spank, step == API_STEP_BATCH ? 6 : 5, words)) {
	case 0:
		return 0;
	case 1:
		return become_exec(verdict, step, argv, environment);
	default:
		return refuse(EX_UNAVAILABLE, "Slurm does not let the payload be put into its guest");
	}
}

int slurm_spank_task_init(struct spank_handle *spank, int count, char *arguments[])
{
	char path[4096];
	uint32_t job_id;
	enum api_step step;

	(void)count;
	(void)arguments;
	if (api_step(spank, &step) == 0 && step == API_STEP_EXTERN)
		return 0;
	switch (api_job_id(spank, &job_id) == 0 ? find_verdict(job_id, path, sizeof(path)) : UNTRUSTED) {
	case VERDICT:
		return to_guest(spank, path);
	case UNTRUSTED:
		return refuse(EX_CONFIG, "this job's verdict on this node is not a file that only root can write, so nothing is "
					 "run; tell your site's administrators");
	case NO_VERDICT:
		break;
	}
	if (vm_was_asked_for(spank))
		return refuse(EX_CONFIG, "a VM was asked for, but none was prepared for this job on this node, so nothing is run "
					 "(--vm-image belongs on the command that makes the job: sbatch, salloc, or srun outside one; if it "
					 "was there, tell your site's administrators that the node's Prolog did not run)");
	return 0;
}
