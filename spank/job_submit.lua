-- Slurm's JobSubmitPlugins=lua: brings VM_IMAGE (and VM_MEMORY, VM_CPUS, ...) of a batch job's environment to the
-- prologue, as words of the job's comment: "lrms_vm:hep-jets,lrms_vm-memory:2G". For submitters that our SPANK plugin
-- does not reach: DRMAA, REST, a login node without it. docs/submit.md says how to install it, alone or beside a
-- site's own. A convenience, not a check: root's prologue believes none of this and checks it again.
--
-- The words are read by lrms_vm/lrms/slurm.py. A comment that already names an image is left as it is; no comment is
-- ever overwritten, only continued. Runs in Lua 5.1 to 5.4.

lrms_vm = {}

local MAX_LENGTH = 1024

-- Each value in the grammar of lrms_vm/request.py, without what ends a word of the comment: blank , ; and "=".
local function image(text)
	return text:find("^[A-Za-z0-9/][A-Za-z0-9._:/@+-]*$") ~= nil
end

local function memory(text)
	return text:find("^%d+%.?%d*[KMGTkmgt]?i?[Bb]?$") ~= nil
end

local function cpus(text)
	return text:find("^[1-9]%d?%d?%d?$") ~= nil
end

local function network(text)
	return text == "none" or text == "nat" or text:find("^bridge:[A-Za-z0-9][A-Za-z0-9._-]*$") ~= nil
end

local function name(text)
	return text:find("^[A-Za-z0-9][A-Za-z0-9._-]*$") ~= nil
end

local function directory(text)
	return text:find("^/[^%s,;=%c]*$") ~= nil and not (text .. "/"):find("/../", 1, true)
end

local function variable(text)
	return text:find("^[A-Za-z_][A-Za-z0-9_]*$") ~= nil
end

-- variable of the job, word of the comment, check, and whether it is a list separated by commas
local OPTIONS = {
	{ "VM_IMAGE", "lrms_vm", image, false },
	{ "VM_MEMORY", "lrms_vm-memory", memory, false },
	{ "VM_CPUS", "lrms_vm-cpus", cpus, false },
	{ "VM_NETWORK", "lrms_vm-network", network, false },
	{ "VM_SHARE", "lrms_vm-share", directory, true },
	{ "VM_KERNEL", "lrms_vm-kernel", name, false },
	{ "VM_ENV", "lrms_vm-env", variable, true },
}

local function names_an_image(comment)
	return (" " .. comment):find("[ \t\n,;]lrms_vm:") ~= nil
end

local function split(text)
	local parts = {}
	for part in (text .. ","):gmatch("([^,]*),") do
		parts[#parts + 1] = part
	end
	return parts
end

-- The comment with the request, or nil and what is wrong. `environment` is only ever asked by name: Slurm's is no table.
function lrms_vm.comment(comment, environment)
	comment = comment or ""
	if environment.VM_IMAGE == nil or names_an_image(comment) then
		return comment
	end
	local words = {}
	for _, option in ipairs(OPTIONS) do
		local from, word, fits, is_list = option[1], option[2], option[3], option[4]
		local text = environment[from]
		if text ~= nil then
			if #text > MAX_LENGTH then
				return nil, from .. ": more than " .. MAX_LENGTH .. " characters"
			end
			for _, value in ipairs(is_list and split(text) or { text }) do
				if not fits(value) then
					local shown = value:sub(1, 60):gsub("[^%w%p ]", "?")
					return nil, from .. ": '" .. shown .. "' cannot be read (see the table in docs/users.md)"
				end
				words[#words + 1] = word .. ":" .. value
			end
		end
	end
	if comment ~= "" then
		table.insert(words, 1, comment)
	end
	return table.concat(words, ",")
end

-- What each job with a VM asks for beside its own words, e.g. { tres_per_node = "gres:vm:1", features = "vm" }: a site
-- that counts guests or has VM features on its nodes sets it after its dofile. docs/slurm.md, "Scheduling".
lrms_vm.vm_jobs_ask = nil

local function wants_vm(job_desc)
	if names_an_image(job_desc.comment or "") then
		return true
	end
	for _, setting in pairs(job_desc.spank_job_env or {}) do -- what our plugin's options became
		if setting:find("^VM_IMAGE=") then
			return true
		end
	end
	return false
end

-- gres/vm with its own count stays; other gres are continued.
function lrms_vm.with_gres(asked, wanted)
	if asked == nil or asked == "" then
		return wanted
	end
	for part in (asked .. ","):gmatch("([^,]*),") do
		if part:gsub("^gres[:/]", ""):match("^[^:=]*") == "vm" then
			return asked
		end
	end
	return asked .. "," .. wanted
end

function lrms_vm.with_feature(asked, wanted)
	if asked == nil or asked == "" then
		return wanted
	end
	if ("&" .. asked .. "&"):find("&" .. wanted .. "&", 1, true) then
		return asked
	end
	return "(" .. asked .. ")&" .. wanted
end

-- For a site's own job_submit.lua: `dofile("/.../lrms_vm.lua")`, then call this first in its slurm_job_submit and
-- return what it returns unless that is slurm.SUCCESS.
function lrms_vm.job_submit(job_desc)
	local code = lrms_vm.bring_request(job_desc)
	local ask = lrms_vm.vm_jobs_ask
	if code == slurm.SUCCESS and ask ~= nil and wants_vm(job_desc) then
		if ask.tres_per_node ~= nil then
			job_desc.tres_per_node = lrms_vm.with_gres(job_desc.tres_per_node, ask.tres_per_node)
		end
		if ask.features ~= nil then
			job_desc.features = lrms_vm.with_feature(job_desc.features, ask.features)
		end
	end
	return code
end

function lrms_vm.bring_request(job_desc)
	if job_desc.script == nil then -- srun and salloc: they bring no environment, and run where the plugin is
		return slurm.SUCCESS
	end
	local environment = job_desc.environment
	if environment == nil then
		return slurm.SUCCESS
	end
	local comment, wrong = lrms_vm.comment(job_desc.comment, environment)
	if comment == nil then
		slurm.log_user("lrms_vm: %s", wrong)
		return slurm.ERROR
	end
	if comment ~= (job_desc.comment or "") then
		job_desc.comment = comment
	end
	return slurm.SUCCESS
end

function slurm_job_submit(job_desc, part_list, submit_uid)
	return lrms_vm.job_submit(job_desc)
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
	return slurm.SUCCESS
end

return slurm.SUCCESS
