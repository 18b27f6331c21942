/* The plugin's logic against a fake Slurm. Plain asserts; ends with the number of checks. Needs no Slurm and no root. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "spank_api.h"

int slurm_spank_init(struct spank_handle *, int, char **);
int slurm_spank_init_post_opt(struct spank_handle *, int, char **);
int slurm_spank_task_init(struct spank_handle *, int, char **);

static int checks;
#define CHECK(what)                                                                                                    \
	do {                                                                                                           \
		checks++;                                                                                              \
		if (!(what)) {                                                                                         \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                                      \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

/* ---- a Slurm that does as it is told */

static struct {
	enum api_place place;
	enum api_step step;
	uint32_t job_id;
	const char *option_seen, *variable, *variable_value;
	char *argv[4], *environment[4];
	int prepend, become_errno;
	/* what the plugin did */
	api_option_callback *callback;
	int registered, set, errors, ended, becomes, prepended;
	char names[8][64], values[8][128], words[16][256], job_environment[256], clean[256];
	size_t job_environment_size;
} fake;

enum api_place api_place(void) { return fake.place; }

int api_option_register(struct spank_handle *spank, const char *name, const char *argument, const char *usage, int value,
			api_option_callback *callback)
{
	(void)spank;
	CHECK(strncmp(name, "vm-", 3) == 0 && argument && strlen(usage) > 10 && value == fake.registered);
	fake.callback = callback;
	fake.registered++;
	return 0;
}

int api_option_seen(struct spank_handle *spank, const char *name)
{
	(void)spank;
	return fake.option_seen && strcmp(fake.option_seen, name) == 0;
}

int api_job_control_set(struct spank_handle *spank, const char *name, const char *value)
{
	(void)spank;
	snprintf(fake.names[fake.set], sizeof(fake.names[0]), "%s", name);
	snprintf(fake.values[fake.set++], sizeof(fake.values[0]), "%s", value);
	return 0;
}

int api_job_variable(struct spank_handle *spank, const char *name, char *value, size_t size)
{
	(void)spank;
	if (!fake.variable || strcmp(fake.variable, name) != 0)
		return 0;
	snprintf(value, size, "%s", fake.variable_value);
	return 1;
}

int api_job_id(struct spank_handle *spank, uint32_t *job_id)
{
	(void)spank;
	*job_id = fake.job_id;
	return fake.job_id ? 0 : -1;
}

int api_step(struct spank_handle *spank, enum api_step *step)
{
	(void)spank;
	*step = fake.step;
	return 0;
}

int api_argv(struct spank_handle *spank, char ***argv)
{
	(void)spank;
	*argv = fake.argv;
	return 0;
}

int api_environment(struct spank_handle *spank, char ***environment)
{
	(void)spank;
	*environment = fake.environment;
	return 0;
}

static void keep(int count, const char *const words[])
{
	for (int i = 0; i < count; i++)
		snprintf(fake.words[i], sizeof(fake.words[0]), "%s", words[i]);
}

int api_prepend(struct spank_handle *spank, int count, const char *words[])
{
	(void)spank;
	if (fake.prepend == 0) {
		keep(count, words);
		fake.prepended++;
	}
	return fake.prepend;
}

void api_error(const char *format, ...)
{
	(void)format;
	fake.errors++;
}

int api_become(const char *program, char *const argv[], char *const environment[])
{
	int count = 0;

	while (argv[count])
		count++;
	CHECK(strcmp(program, argv[0]) == 0);
	keep(count, (const char *const *)argv);
	snprintf(fake.clean, sizeof(fake.clean), "%s", environment[0]);
	for (int i = 0; i < count; i++)
		if (strcmp(argv[i], "--env-fd") == 0) {
			int fd = atoi(argv[i + 1]);
			CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0);
			fake.job_environment_size = (size_t)read(fd, fake.job_environment, sizeof(fake.job_environment));
			close(fd);
		}
	fake.becomes++;
	errno = fake.become_errno;
	return -1;
}

void api_end(int code)
{
	if (!fake.ended) /* a real one does not return */
		fake.ended = code;
}

/* ---- scenes */

static char directory[] = "/tmp/lrms_vm-test-XXXXXX";
static char verdicts[64];
static char node_file[128];

static void scene(enum api_place place)
{
	memset(&fake, 0, sizeof(fake));
	fake.place = place;
	fake.step = API_STEP_TASKS;
	fake.job_id = 42;
	fake.prepend = 1;
	fake.argv[0] = (char *)"/bin/task";
	fake.argv[1] = (char *)"";
	fake.argv[2] = (char *)"a b";
	fake.environment[0] = (char *)"LD_PRELOAD=/evil.so";
	fake.environment[1] = (char *)"EMPTY=";
}

static int init(void)
{
	static char exec[] = "exec=/opt/exec", where[80];
	char *arguments[] = {exec, where};

	snprintf(where, sizeof(where), "verdicts=%s", verdicts);
	return slurm_spank_init(NULL, 2, arguments);
}

static void no_verdict(void) { unlink(node_file); }

static void verdict(void)
{
	no_verdict();
	int fd = open(node_file, O_WRONLY | O_CREAT | O_EXCL, 0440);
	CHECK(fd >= 0);
	close(fd);
}

static int task(void)
{
	int quiet = dup(2), null = open("/dev/null", O_WRONLY);

	dup2(null, 2);
	int answer = slurm_spank_task_init(NULL, 0, NULL);
	dup2(quiet, 2);
	close(quiet);
	close(null);
	return answer;
}

static void arguments_of_plugstack(void)
{
	char bad[] = "exce=/x", relative[] = "exec=x", *arguments[] = {bad, relative};

	scene(API_SLURMD);
	CHECK(slurm_spank_init(NULL, 2, arguments) == -1 && fake.errors == 3); /* two bad words, and no exec= */
	scene(API_STEPD); /* nothing may fail there */
	CHECK(slurm_spank_init(NULL, 2, arguments) == 0 && fake.errors == 2);

	char where[80], *only_where[] = {where}; /* a verdict, but no program for it: not on the host */
	snprintf(where, sizeof(where), "verdicts=%s", verdicts);
	verdict();
	scene(API_STEPD);
	CHECK(slurm_spank_init(NULL, 1, only_where) == 0 && task() == -1 && fake.ended == 78 && fake.becomes == 0);
	no_verdict();
	scene(API_SLURMD);
	CHECK(init() == 0 && fake.registered == 7 && fake.errors == 0);
}

static void options_where_jobs_are_submitted(void)
{
	static const char *const refused[] = {"", " ", "a b", "a,b", "a=b", "-x", "../x", "a/../b", "a\nb", "'a'", "$(id)", "\303\244"};

	scene(API_SUBMIT);
	CHECK(init() == 0);
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		CHECK(fake.callback(0, refused[i], 0) == -1);
	CHECK(fake.callback(0, NULL, 0) == -1 && fake.callback(3, "a\x1b[31m", 0) == -1);
	CHECK(fake.callback(0, "a b", 1) == 0); /* remote: never fails */
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == 0 && fake.set == 0);

	CHECK(fake.callback(1, "2G", 0) == 0);
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == -1); /* memory for which VM? */

	CHECK(fake.callback(0, "atlas/sim@13:x+1", 0) == 0);
	fake.set = 0;
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == 0 && fake.set == 2);
	CHECK(!strcmp(fake.names[0], "VM_IMAGE") && !strcmp(fake.values[0], "atlas/sim@13:x+1"));
	CHECK(!strcmp(fake.names[1], "VM_MEMORY") && !strcmp(fake.values[1], "2G"));

	setenv("SBATCH_VM_CPUS", "3", 1);
	setenv("SBATCH_VM_IMAGE", "other", 1); /* the option wins */
	fake.set = 0;
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == 0 && fake.set == 3);
	CHECK(!strcmp(fake.values[0], "atlas/sim@13:x+1") && !strcmp(fake.names[2], "VM_CPUS"));

	setenv("SLURM_VM_KERNEL", "k", 1);
	setenv("SLURM_JOB_ID", "1", 1); /* srun inside a job: its defaults are no request */
	fake.place = API_SRUN;
	fake.set = 0;
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == 0 && fake.set == 3);
	unsetenv("SLURM_JOB_ID");
	fake.set = 0;
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == 0 && fake.set == 4);
	fake.place = API_STEPD;
	fake.set = 0;
	CHECK(slurm_spank_init_post_opt(NULL, 0, NULL) == 0 && fake.set == 0);
}

static void an_outer_jobs_request_is_forgotten(void)
{
	setenv("SLURM_SPANK_VM_IMAGE", "outer", 1);
	setenv("_SLURM_SPANK_OPTION_lrms_vm_vm_image", "outer", 1);
	setenv("SLURM_SPANK__SLURM_SPANK_OPTION_lrms_vm_vm_image", "outer", 1);
	scene(API_SRUN);
	CHECK(init() == 0 && getenv("SLURM_SPANK_VM_IMAGE") != NULL);
	scene(API_SUBMIT);
	CHECK(init() == 0 && getenv("SLURM_SPANK_VM_IMAGE") == NULL);
	CHECK(getenv("_SLURM_SPANK_OPTION_lrms_vm_vm_image") == NULL);
	CHECK(getenv("SLURM_SPANK__SLURM_SPANK_OPTION_lrms_vm_vm_image") == NULL);
}

static void an_ordinary_job_is_untouched(void)
{
	no_verdict();
	scene(API_STEPD);
	CHECK(init() == 0 && task() == 0 && fake.ended == 0 && fake.becomes == 0);
	fake.variable = "SLURM_JOB_COMMENT";
	fake.variable_value = "see xlrms_vm:no and lrms_vm";
	CHECK(task() == 0 && fake.ended == 0);
}

static void a_verdict_leads_to_the_guest(void)
{
	verdict();
	scene(API_STEPD);
	CHECK(init() == 0);
	task();
	CHECK(fake.becomes == 1);
	CHECK(!strcmp(fake.words[0], "/opt/exec") && !strcmp(fake.words[1], "exec") && !strcmp(fake.words[2], "--verdict"));
	CHECK(!strcmp(fake.words[3], node_file) && !strcmp(fake.words[4], "--env-fd") && !strcmp(fake.words[6], "--"));
	CHECK(!strcmp(fake.words[7], "/bin/task") && !strcmp(fake.words[8], "") && !strcmp(fake.words[9], "a b"));
	CHECK(strncmp(fake.clean, "PATH=", 5) == 0);
	CHECK(fake.job_environment_size == sizeof("LD_PRELOAD=/evil.so\0EMPTY="));
	CHECK(memcmp(fake.job_environment, "LD_PRELOAD=/evil.so\0EMPTY=", fake.job_environment_size) == 0);
	CHECK(fake.ended == 69); /* execve came back: the payload does not run on the host */

	scene(API_STEPD);
	fake.step = API_STEP_BATCH;
	task();
	CHECK(!strcmp(fake.words[4], "--script") && !strcmp(fake.words[5], "--env-fd") && !strcmp(fake.words[7], "--"));

	scene(API_STEPD);
	fake.step = API_STEP_EXTERN;
	CHECK(task() == 0 && fake.becomes == 0);
}

static void where_slurm_prepends_no_environment_file_is_needed(void)
{
	verdict();
	scene(API_STEPD);
	fake.prepend = 0;
	fake.step = API_STEP_BATCH;
	CHECK(init() == 0 && task() == 0 && fake.prepended == 1 && fake.becomes == 0 && fake.ended == 0);
	CHECK(!strcmp(fake.words[3], node_file) && !strcmp(fake.words[4], "--script") && !strcmp(fake.words[5], "--"));
	fake.step = API_STEP_TASKS;
	CHECK(task() == 0 && !strcmp(fake.words[4], "--"));
	fake.prepend = -1;
	CHECK(task() == -1 && fake.ended == 69);
}

static void asked_but_nothing_prepared_fails_closed(void)
{
	static const char *const comments[] = {"lrms_vm:a", "x lrms_vm:a", "x,lrms_vm:a", "x;lrms_vm:"};

	no_verdict();
	scene(API_STEPD);
	CHECK(init() == 0);
	fake.option_seen = "vm-image";
	CHECK(task() == -1 && fake.ended == 78 && fake.becomes == 0);
	scene(API_STEPD);
	fake.option_seen = "vm-cpus";
	CHECK(task() == -1 && fake.ended == 78);
	scene(API_STEPD);
	fake.variable = "SLURM_SPANK_VM_IMAGE";
	fake.variable_value = "a";
	CHECK(task() == -1 && fake.ended == 78);
	for (size_t i = 0; i < sizeof(comments) / sizeof(comments[0]); i++) {
		scene(API_STEPD);
		fake.variable = "SLURM_JOB_COMMENT";
		fake.variable_value = comments[i];
		CHECK(task() == -1 && fake.ended == 78);
	}
}

static void a_verdict_that_others_can_write_runs_nothing(void)
{
	char elsewhere[128];

	scene(API_STEPD);
	CHECK(init() == 0);
	verdict();
	CHECK(chmod(node_file, 0464) == 0 && task() == -1 && fake.ended == 78 && fake.becomes == 0);
	scene(API_STEPD);
	verdict();
	CHECK(chmod(verdicts, 0777) == 0 && task() == -1 && fake.ended == 78 && fake.becomes == 0);
	CHECK(chmod(verdicts, 0755) == 0);

	scene(API_STEPD);
	snprintf(elsewhere, sizeof(elsewhere), "%s/real", directory);
	CHECK(rename(node_file, elsewhere) == 0 && symlink(elsewhere, node_file) == 0);
	CHECK(task() == -1 && fake.ended == 78 && fake.becomes == 0);
	unlink(elsewhere);
	unlink(node_file);

	scene(API_STEPD);
	CHECK(mkfifo(node_file, 0400) == 0 && task() == -1 && fake.ended == 78 && fake.becomes == 0);
	unlink(node_file);

	scene(API_STEPD);
	fake.job_id = 0; /* Slurm does not say which job this is */
	CHECK(task() == -1 && fake.ended == 78);
	if (geteuid() == 0) {
		scene(API_STEPD);
		verdict();
		CHECK(chown(node_file, 1, 1) == 0 && task() == -1 && fake.ended == 78 && fake.becomes == 0);
	}
	no_verdict();
}

static void without_a_node_name_the_jobs_only_verdict_counts(void)
{
	char other[128];

	scene(API_STEPD);
	CHECK(init() == 0 && task() == 0 && fake.ended == 0);
	verdict();
	task();
	CHECK(fake.becomes == 1 && !strcmp(fake.words[3], node_file));
	scene(API_STEPD);
	snprintf(other, sizeof(other), "%s/slurm-42.n2.json", verdicts);
	CHECK(symlink("x", other) == 0 && task() == -1 && fake.ended == 78 && fake.becomes == 0);
	unlink(other);
	no_verdict();
}

int main(void)
{
	CHECK(mkdtemp(directory) != NULL);
	snprintf(verdicts, sizeof(verdicts), "%s/verdicts", directory);
	CHECK(mkdir(verdicts, 0755) == 0);
	snprintf(node_file, sizeof(node_file), "%s/slurm-42.n1.json", verdicts);

	/* the plugin keeps what it has learned, as in a real process: these two come first */
	unsetenv("SLURMD_NODENAME");
	arguments_of_plugstack();
	without_a_node_name_the_jobs_only_verdict_counts();

	setenv("SLURMD_NODENAME", "n1", 1);
	an_ordinary_job_is_untouched();
	a_verdict_leads_to_the_guest();
	where_slurm_prepends_no_environment_file_is_needed();
	asked_but_nothing_prepared_fails_closed();
	a_verdict_that_others_can_write_runs_nothing();
	an_outer_jobs_request_is_forgotten();
	options_where_jobs_are_submitted();

	rmdir(verdicts);
	rmdir(directory);
	printf("%d checks, all good\n", checks);
	return 0;
}
